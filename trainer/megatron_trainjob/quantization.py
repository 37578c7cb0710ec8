"""How the weights of a published model are stored: in full, in FP8 or in MXFP4. Pure, from config.json alone.

Which formats are supported, and the names of their scales; convert/dequantize.py multiplies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIG_KEYS = ("quantization_config", "compression_config")
"""Keys of config.json with the storage format of weights; an export in 16 or 32 bits has neither."""
_SCALES = {"fp8": ".weight_scale_inv", "compressed-tensors": ".weight_scale", "mxfp4": "_scales"}
_BLOCKS = "_blocks"
BLOCK_SIZE = 32
"""Numbers of four bits that share a scale in MXFP4, whose blocks hold two in a byte."""
_BESIDE_WEIGHTS = (
    ".activation_scale",
    ".input_scale",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
)
"""Scales of activations and of the cache, which FP8 inference uses and training in other types does not."""
_DENSE_FORMATS = ("float-quantized", "naive-quantized")
_READABLE = (
    "FP8 with block, channel or tensor scales (quant_method fp8, or compressed-tensors float-quantized), and MXFP4 of "
    "experts (quant_method mxfp4)"
)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the weights of a folder are stored. block: rows and columns per scale, None: from the grid of scales."""

    method: str
    block: tuple[int, int] | None = None

    @property
    def has_blocks(self) -> bool:
        """Whether four-bit numbers are stored in blocks of their own, beside tensors in full."""
        return self.method == "mxfp4"

    def in_full(self, name: str) -> str:
        """The name that a tensor of blocks has when it is stored in full."""
        return name.removesuffix(_BLOCKS) if self.has_blocks else name

    def problem_of_blocks(self, names: Collection[str]) -> str:
        """The problem with blocks that have no scales; empty if there is none."""
        lost = sorted(
            scale
            for name in names
            if (scale := self.scale_name(self.in_full(name))) not in names and self.in_full(name) != name
        )
        return f"{lost[0]} is missing, without which its blocks cannot be read; download it again" if lost else ""

    def scale_name(self, weight: str) -> str:
        """The tensor that holds the scales of the tensor called `weight`."""
        return weight.removesuffix(".weight") + _SCALES[self.method]

    def is_scale(self, name: str, names: Collection[str]) -> bool:
        """Whether a tensor only serves to read another one, or to compute in FP8."""
        suffix = _SCALES[self.method]
        if self.has_blocks:
            return name.endswith(suffix) and name.removesuffix(suffix) in names
        if name.endswith(suffix):
            return name.removesuffix(suffix) + ".weight" in names
        return name.endswith(_BESIDE_WEIGHTS)

    def rounds_to_scale(self, weight: str) -> bool:
        """Whether products are rounded to the type of the scales, as compressed-tensors does outside experts."""
        return self.method == "compressed-tensors" and ".experts." not in weight


def of(config: Mapping[str, Any]) -> Quantization | None:
    """How a model with this config.json is quantized; None if it is not. Call `problem` first."""
    found = _section(config)
    if not found:
        return None
    method = str(found["quant_method"])
    block = found.get("weight_block_size") if method == "fp8" else _block_structure(found)
    return Quantization(method=method, block=(int(block[0]), int(block[1])) if block else None)


def problem(config: Mapping[str, Any]) -> str | None:
    """Why weights in this format cannot be read; None if they can."""
    try:
        return None if all(config.get(key) is None for key in CONFIG_KEYS) else _problem(_section(config))
    except (TypeError, AttributeError, ValueError):
        return f"is not a known form of quantization; {_REMEDY}"


def _problem(found: Mapping[str, Any]) -> str | None:
    method = found.get("quant_method")
    if method == "fp8":
        block = found.get("weight_block_size")
        is_grid = (
            isinstance(block, list) and len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block)
        )
        return None if block is None or is_grid else f"weight_block_size {block!r} is not a pair of sizes; {_REMEDY}"
    if method == "mxfp4":
        return None
    if method == "compressed-tensors":
        reasons = sorted(set(_unreadable_groups(found)))
        return f"{'; '.join(reasons)}; {_REMEDY}" if reasons else None
    return f"weights quantized by {method!r} are not supported; {_REMEDY}"


_REMEDY = f"read is {_READABLE}; convert the model to bfloat16 or float32 (transformers: dequantize, save_pretrained)"


def block_sizes(shape: Sequence[int], grid: Sequence[int], given: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns per scale. Raises ValueError for an ambiguous grid.

    grid: rows and columns of the scales. given: the block size in config.json.
    """
    if len(shape) != 2:
        raise ValueError(f"a quantized weight has two dimensions, this one {list(shape)}")
    sizes = given or (None, None)
    rows, columns = (_side(size, count, side) for size, count, side in zip(shape, grid, sizes, strict=True))
    return rows, columns


def _side(size: int, count: int, given: int | None) -> int:
    """The length of a block. transformers divides the size by the number of scales, whatever config.json says."""
    divided = size // count if size % count == 0 else None
    if count == 1:
        return size
    if given is None or -(-size // given) != count:
        if divided is None:
            raise ValueError(f"{size} are not divisible by {count} scales")
        return divided
    if divided is not None and divided != given:
        raise ValueError(
            f"{count} scales for {size} are blocks of {given} by config.json and of {divided} divided evenly"
        )
    return given


def grid_problem(weight: str, shape: Sequence[int], scales: Sequence[int], given: tuple[int, int] | None) -> str | None:
    """The problem with the scales of a weight, by the shapes of both."""
    grid = tuple(scales) if len(scales) > 1 else (scales[0] if scales else 1, 1)
    try:
        block_sizes(shape, grid, given)
    except ValueError as err:
        return f"{weight} has scales that cannot be read: {err}"
    return None


def in_full(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the same model stored in 16 or 32 bits; MXFP4 without another type stands for bfloat16."""
    kept = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    is_typed = bool(config.get("dtype") or config.get("torch_dtype"))
    is_mxfp4 = any(
        isinstance(found := config.get(key), Mapping) and found.get("quant_method") == "mxfp4" for key in CONFIG_KEYS
    )
    return {**kept, "torch_dtype": "bfloat16"} if is_mxfp4 and not is_typed else kept


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found: object = next((config[key] for key in CONFIG_KEYS if config.get(key)), {})
    if not isinstance(found, Mapping):
        raise TypeError("the section is not an object")
    return found


def _groups(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return list((found.get("config_groups") or {}).values())


def _block_structure(found: Mapping[str, Any]) -> Sequence[int] | None:
    structures = [(group.get("weights") or {}).get("block_structure") for group in _groups(found)]
    return next((structure for structure in structures if structure), None)


def _unreadable_groups(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("quantization_status", "compressed") != "compressed":
        yield f"quantization_status is {found['quantization_status']!r}, not 'compressed'"
    if (found.get("sparsity_config") or {}).get("format", "dense") != "dense":
        yield "weights are stored sparse"
    for group in _groups(found):
        weights, stored = group.get("weights") or {}, group.get("format") or found.get("format")
        if weights.get("type") != "float" or weights.get("num_bits") != 8:
            yield f"weights have {weights.get('num_bits')} bits of type {weights.get('type')!r}"
        elif stored not in _DENSE_FORMATS:
            yield f"their format is {stored!r}"
