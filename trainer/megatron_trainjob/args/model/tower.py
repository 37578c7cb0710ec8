"""What a model with a vision tower cannot do: towers that fit no decoder, and layouts without a place for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isqrt

from megatron_trainjob.args import derive, pixels, placement
from megatron_trainjob.args.head import TOWER, modules_to_save
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.config import Config
from megatron_trainjob.families.decoder import rope_values
from megatron_trainjob.families.family import refused
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.vision import PREFIX, Vision
from megatron_trainjob.violation import Violation


def of_tower(model: Model, vision: Vision, config: Config) -> Iterator[Violation]:
    """Towers whose sizes do not fit each other or the decoder, and sections of heads that are none."""
    if vision.pads_images:  # its family compares them
        return
    heads, size = vision.num_heads, vision.hidden_size
    if size % (heads if vision.tile else 4 * heads):
        channels = "equally many" if vision.tile else "a multiple of 4"
        message = f"{heads} heads of a tower of {size} channels must have {channels} channels each"
        yield refused(f"vision_config.{'num_attention_heads' if vision.tile else 'num_heads'}", heads, message)
    if vision.output_size != model.hidden_size:
        key = "hidden_size" if "embed_dim" in config.vision_keys else "out_hidden_size"
        message = f"the decoder's hidden size is {model.hidden_size}; correct either"
        yield refused(f"vision_config.{key}", vision.output_size, message)
    pairs = int(model.qk_head_size * model.rotary.share) // 2
    if vision.tile:  # positions are those of text
        return
    if not vision.sections or min(vision.sections) < 0 or sum(vision.sections) != pairs:
        given = rope_values(config.raw).get("mrope_section")
        yield refused("rope_parameters.mrope_section", given, f"must be three counts that sum up to {pairs}")
    if any(layer not in range(vision.depth) for layer in vision.deep_layers):
        message = f"must be layers of the tower, from 0 to {vision.depth - 1}"
        yield refused("vision_config.deepstack_visual_indexes", vision.deep_layers, message)


def of_arguments(model: Model, vision: Vision, args: TrainArgs) -> Iterator[Violation]:
    """Arguments that a model with images does not support."""
    if args.rope_scaling is not None and vision.sections:
        message = "rotary positions by time, row and column cannot be scaled; remove it"
        yield _violation("rope_scaling", args.rope_scaling, message)
    if model.trained_predictions and args.pipeline_model_parallel_size > 1:
        message = (
            "the layers see the features of images, which the first pipeline stage alone has; remove it, or set "
            "pipeline_model_parallel_size to 1"
        )
        yield _violation("mtp_num_layers", args.mtp_num_layers, message)
    if args.task_type not in ("causal_lm", None) or args.rlhf_type == "rm":
        name = "rlhf_type" if args.rlhf_type == "rm" else "task_type"
        message = "a model with images is trained as a language model only; remove it, or choose a text model"
        yield _violation(name, getattr(args, name), message)
    if args.quant_method is not None:
        message = "a model with images is exported in 16 or 32 bits only; remove it"
        yield _violation("quant_method", args.quant_method, message)
    if args.norm_bbox == "none" and vision.tile:
        message = "an image is cut into tiles, so that no resized image has coordinates; use norm1000"
        yield _violation("norm_bbox", "none", message)
    if args.rlhf_type == "kto":
        message = "joins prompts with answers of other rows, which their images do not follow; use dpo"
        yield _violation("rlhf_type", "kto", message)
    if derive.is_matrix_optimizer(args) and _trains(vision, args):
        message = (
            "would treat the tower's kernels as matrices; use adam, or set freeze_vit and freeze_aligner and take the "
            "tower out of trainable_parameters"
        )
        yield _violation("optimizer", args.optimizer, message)
    if vision.pads_images:
        yield from _budget(vision, args)
    if vision.separates_tiles:
        yield from _no_fewest_tiles(vision, args)
    yield from _deep_layers(model, vision, args)


def _budget(vision: Vision, args: TrainArgs) -> Iterator[Violation]:
    """Bounds of images that are scaled to one of a few numbers of tokens."""
    side = vision.patch_size * vision.merge_size
    given = pixels.in_pixels(args, side)
    if "min_pixels" in given:
        message = "every image is scaled to as many tokens as max_pixels allows; remove it"
        yield _of_pixels("min_pixels", given["min_pixels"], message, args)
    if "max_pixels" in given and not pixels.budget(given["max_pixels"], side):
        fewest = pixels.BUDGETS[0]
        message = f"an image has at least {fewest} tokens of {side} x {side} pixels; set {fewest * side**2} or more"
        yield _of_pixels("max_pixels", given["max_pixels"], message, args)
    tokens = pixels.budget(given["max_pixels"], side) if "max_pixels" in given else 0
    shortest = isqrt(tokens or pixels.BUDGETS[0]) * vision.merge_size
    if shortest > vision.longest_side:
        message = (
            f"has fewer positions than a square image has patches along a side ({shortest}), so that all are dropped"
        )
        yield refused("vision_config.position_embedding_size", vision.longest_side, f"{message}; {_remedy(tokens)}")


def _remedy(tokens: int) -> str:
    return "lower max_pixels" if tokens > pixels.BUDGETS[0] else "use another model"


def _no_fewest_tiles(vision: Vision, args: TrainArgs) -> Iterator[Violation]:
    """Bounds from below of images that get the fewest tiles that hold them."""
    given = pixels.in_pixels(args, vision.tile)
    for name in ("min_pixels", "min_num"):
        if name in given:
            message = "an image has as many tiles as hold it without shrinking, and no more; remove it"
            yield _of_pixels(name, given[name], message, args)


def _of_pixels(name: str, value: object, message: str, args: TrainArgs) -> Violation:
    return _violation(name if getattr(args, name, None) is not None else "model_kwargs", value, message)


def _trains(vision: Vision, args: TrainArgs) -> bool:
    """Whether a parameter of the tower trains: its part is not frozen, or it is chosen by name."""
    if not (args.freeze_vit and args.freeze_aligner) or TOWER in modules_to_save(args):
        return True
    names = [PREFIX + name for name in vision.tensors]
    prefixes = tuple(args.trainable_parameters)
    try:
        regex = re.compile(args.trainable_parameters_regex or "$^")
    except re.error:  # the rules report it
        return False
    return any(name.startswith(prefixes) or regex.search(name) for name in names)


def _deep_layers(model: Model, vision: Vision, args: TrainArgs) -> Iterator[Violation]:
    """The first chunk of layers has to hold those that take states of the tower."""
    try:
        first = len(placement.chunks_of_stages(args, model.num_layers)[0][0])
    except ValueError:  # the rules report it
        return
    if len(vision.deep_layers) > first:
        message = (
            f"the first {len(vision.deep_layers)} layers take states of the vision tower, which is on the first stage, "
            f"and that begins with {first} layers; use fewer stages, or set decoder_first_pipeline_num_layers"
        )
        yield _violation("pipeline_model_parallel_size", args.pipeline_model_parallel_size, message)


def _violation(name: str, value: object, message: str) -> Violation:
    return Violation(path=f"spec.args.{name}", value=value, message=message)
