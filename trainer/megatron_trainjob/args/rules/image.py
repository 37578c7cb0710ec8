"""Arguments about images: they need a model that sees, and their limits must leave room."""

from __future__ import annotations

from megatron_trainjob.args.rules.rule import Facts, Rule, rule
from megatron_trainjob.args.tree import ARGUMENTS

IMAGE_ARGUMENTS = ("max_pixels", "min_pixels", "norm_bbox", "image_root", "image_cache_gib")


def _idle(name: str) -> Rule:
    """The warning that a text model has no images."""

    def broken(facts: Facts) -> str:
        if getattr(facts.args, name) == ARGUMENTS[name].default or "vision_config" in facts.config:
            return ""
        return "has no effect, because a text model has no images"

    return Rule(name=f"{name}_needs_vision", about=(name, "model"), broken=broken, needs_model=True, severity="warning")


@rule("min_pixels", "max_pixels")
def the_fewest_pixels_are_below_the_most(facts: Facts) -> str:
    """An image cannot have more pixels than max_pixels and fewer than min_pixels."""
    fewest, most = facts.args.min_pixels, facts.args.max_pixels
    if fewest is None or most is None or fewest <= most:
        return ""
    return f"is more than max_pixels ({most}); lower it, or raise max_pixels"


@rule("chat_template_kwargs", needs_model=True)
def images_are_not_numbered(facts: Facts) -> str:
    """Templates number images that they are given as parts of a turn; here a turn is text with places for images."""
    given = facts.args.chat_template_kwargs or {}
    if not given.get("add_vision_id") or "vision_config" not in facts.config:
        return ""
    return "add_vision_id would not number the images; remove it, or write the numbers in the rows"


RULES = (*map(_idle, IMAGE_ARGUMENTS), the_fewest_pixels_are_below_the_most, images_are_not_numbered)
