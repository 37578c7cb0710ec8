"""Arguments about images: they need a model that sees, and their limits must leave room."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from megatron_trainjob import families
from megatron_trainjob.args import pixels
from megatron_trainjob.args.field import EVERY_TASK
from megatron_trainjob.args.rules.rule import Facts, Rule, rule
from megatron_trainjob.args.tree import ARGUMENTS

IMAGE_ARGUMENTS = ("max_pixels", "min_pixels", "norm_bbox", "image_root", "image_cache_gib", "model_kwargs")


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


@rule("model_kwargs", tasks=EVERY_TASK)
def settings_of_models_are_known(facts: Facts) -> str:
    """A setting that nothing reads would vanish without a word."""
    given = facts.args.model_kwargs or {}
    lowered = [str(name).lower() for name in given]
    return "; ".join(
        [
            *filter(None, map(_problem, lowered, given.values())),
            *(f"{name} stands there twice" for name in dict.fromkeys(lowered) if lowered.count(name) > 1),
        ]
    )


def _problem(name: str, value: object) -> str:
    if name.upper() in pixels.UNREAD:
        return f"{name} is read by nothing here; remove it"
    if name not in pixels.NAMES:
        near = difflib.get_close_matches(name, pixels.NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(pixels.NAMES)}"
        return f"{name} is not read; {hint}; other variables go into spec.env"
    if pixels.value_of(name, value) is not None:
        return ""
    if name == pixels.BOXES:
        return f"{name} must be {' or '.join(pixels.BOX_FORMATS)}"
    return f"{name} must be a positive {'number' if name == pixels.FPS else 'whole number'}"


@rule("model_kwargs", "max_pixels", "min_pixels", tasks=EVERY_TASK)
def pixels_are_given_once(facts: Facts) -> str:
    """Two limits of the same thing would leave one without effect."""
    return "; ".join(_contradictions(facts))


def _contradictions(facts: Facts) -> Iterator[str]:
    given = pixels.settings(facts.args)
    for tokens, name in pixels.TOKENS.items():
        if tokens in given and name in given:
            yield f"{tokens} and {name} limit the same; remove one"
    for name in ("max_pixels", "min_pixels"):
        own, tokens = getattr(facts.args, name), next(k for k, of in pixels.OF_IMAGES.items() if of == name)
        if own is not None and tokens in given:
            yield f"{tokens} and the argument {name} limit the same; remove one"
        if own is not None and given.get(name, own) != own:
            yield f"{name} {given[name]:g} contradicts the argument {name}, which is {own}; remove one"
    for number, name in pixels.TILES.items():
        if number in given and (name in given or getattr(facts.args, name) is not None):
            yield f"{number} and {name} limit the same; remove one"
    for least, most in (
        ("min_pixels", "max_pixels"),
        ("video_min_pixels", "video_max_pixels"),
        ("fps_min_frames", "fps_max_frames"),
        ("image_min_token_num", "image_max_token_num"),
        ("video_min_token_num", "video_max_token_num"),
        ("min_num", "max_num"),
    ):
        if given.get(least, 0) > given.get(most, float("inf")):
            yield f"{least} is more than {most}"


@rule("model_kwargs", needs_model=True, severity="warning")
def settings_fit_the_kind_of_model(facts: Facts) -> str:
    """Images of any size have tokens, images that are cut into tiles have tiles."""
    family = families.of(facts.config)
    if family is None or not family.text_type:
        return ""
    given, is_cut = pixels.settings(facts.args), family.cuts_images
    idle = [*pixels.OF_VIDEOS, *pixels.OF_VIDEOS.values()] if is_cut else [*pixels.TILES]
    unread = [name for name in dict.fromkeys(idle) if name in given]
    why = "frames have the size of a tile" if is_cut else "images are not cut into tiles"
    return f"{', '.join(unread)} has no effect with this model, whose {why}" if unread else ""


@rule("chat_template_kwargs", needs_model=True)
def images_are_not_numbered(facts: Facts) -> str:
    """Templates number images that they are given as parts of a turn; here a turn is text with places for images."""
    given = facts.args.chat_template_kwargs or {}
    if not given.get("add_vision_id") or "vision_config" not in facts.config:
        return ""
    return "add_vision_id would not number the images; remove it, or write the numbers in the rows"


@rule("model_kwargs", needs_model=True, severity="warning")
def the_form_of_boxes_is_that_of_qwen(facts: Facts) -> str:
    """Other models write boxes in one way."""
    is_qwen = str(facts.config.get("model_type", "")).startswith("qwen")
    if is_qwen or "vision_config" not in facts.config or pixels.box_format(facts.args) == pixels.BOX_FORMATS[0]:
        return ""
    return f"{pixels.BOXES} has no effect with this model, which writes boxes in one way"


RULES = (
    *map(_idle, IMAGE_ARGUMENTS),
    the_fewest_pixels_are_below_the_most,
    settings_of_models_are_known,
    pixels_are_given_once,
    settings_fit_the_kind_of_model,
    the_form_of_boxes_is_that_of_qwen,
    images_are_not_numbered,
)
