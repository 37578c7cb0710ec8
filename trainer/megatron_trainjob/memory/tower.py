"""The vision tower in the memory of a rank: whole on every rank of the first pipeline stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from math import prod

from megatron_trainjob.args import pixels
from megatron_trainjob.args.head import TOWER, modules_to_save
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.vision import PREFIX, Vision, is_aligner, is_fixed, is_looked_up

_MATRIX = 2


def trained_parameters(args: TrainArgs, vision: Vision) -> int:
    """Parameters of tower and aligner that train: their own, or those of the adapters on their linears.

    An adapter of rank r on a linear [out, in] has r * (in + out). freeze_parameters_ratio is left out: it counts from
    the bottom of the whole model.
    """
    if trains_in_full(args):
        return vision.num_parameters
    total = 0
    for name, shape in (
        (PREFIX + name, shape) for name, shape in vision.tensors.items() if not is_fixed(PREFIX + name)
    ):
        if args.train_type == "full":
            total += prod(shape) if _is_trained(args, name) else 0
        elif any(_is_suffix(wish, module) for wish in args.modules_to_save for module in _modules_around(name)):
            total += prod(shape)
        elif len(shape) == _MATRIX and not is_looked_up(name) and _is_adapted(args, name.removesuffix(".weight")):
            total += args.lora_rank * sum(shape)
    return total


def _is_frozen(args: TrainArgs, name: str) -> bool:
    return args.freeze_aligner if is_aligner(name) else args.freeze_vit


def _is_trained(args: TrainArgs, name: str) -> bool:
    """In full training: a name that is chosen to train does, however it was frozen."""
    if _is_chosen(name, args.trainable_parameters, args.trainable_parameters_regex):
        return True
    return not (_is_frozen(args, name) or _is_chosen(name, args.freeze_parameters, args.freeze_parameters_regex))


def _is_chosen(name: str, prefixes: tuple[str, ...], regex: str | None) -> bool:
    return name.startswith(prefixes) or bool(regex and _expression(regex).search(name))


def _is_adapted(args: TrainArgs, module: str) -> bool:
    """all-linear leaves frozen parts out; modules are adapted by name wherever they are."""
    if args.target_regex is not None:
        return bool(_expression(args.target_regex).fullmatch(module))
    is_left_out = _is_frozen(args, module)
    return any(not is_left_out if wish == "all-linear" else _is_suffix(wish, module) for wish in args.target_modules)


def _modules_around(name: str) -> Iterator[str]:
    """visual.blocks.0.attn.qkv.weight -> visual, visual.blocks, ..."""
    return accumulate(name.split(".")[:-1], lambda outer, inner: f"{outer}.{inner}")


def _is_suffix(wish: str, name: str) -> bool:
    """Whether `wish` is the name or its last dotted parts."""
    return name == wish or name.endswith(f".{wish}")


def _expression(text: str) -> re.Pattern[str]:
    """One that matches nothing where it is invalid, which the rules report."""
    try:
        return re.compile(text)
    except re.error:
        return re.compile("$^")


def trains_in_full(args: TrainArgs) -> bool:
    """Whether tower and aligner train in full beside adapters."""
    return args.train_type != "full" and TOWER in modules_to_save(args)


def activation_bytes(args: TrainArgs, vision: Vision, *, samples: int, tokens: int, element_bytes: int) -> float:
    """What the tower keeps of one micro-batch for its backward pass, nothing if all of it is frozen.

    tokens: of the whole rows, since every context-parallel rank runs the tower on all images of a row. Its patches: as
    many as the rows have tokens for; of samples that are not packed, those of one image of max_pixels each. A layer
    keeps its input, both norms, queries, keys, values, the attention output (8 h) and the feed-forward part (3 w) of
    each patch; recomputed, only its input, and one layer at a time.
    """
    if trained_parameters(args, vision) == 0:
        return 0.0
    patches = tokens * vision.merge_size**2
    most = _most_patches(args, vision)
    if most and not args.packing:  # a packed row holds any number of images
        patches = min(patches, samples * most)
    layer = patches * (8 * vision.hidden_size + 3 * vision.width) * element_bytes
    if not args.vit_gradient_checkpointing:
        return float(vision.depth * layer)
    return float(vision.depth * patches * vision.hidden_size * element_bytes + layer)


def _most_patches(args: TrainArgs, vision: Vision) -> int:
    """Of one image; 0 where the arguments do not say. An image of several tiles has one more, the whole of it."""
    given = pixels.in_pixels(args, vision.patch_size * vision.merge_size)
    if not vision.tile:
        return int(given.get("max_pixels", 0)) // vision.patch_size**2
    most = pixels.tiles(given, vision.tile).most
    return 0 if most is None else (most + (most > 1)) * vision.patches_per_tile
