"""Weights of linears in FP8 with a scale per block of 128 x 128, as DeepSeek and Qwen publish them.

A scale is the largest magnitude of its block divided by the largest number of e4m3, so a weight is read as
quantized value * scale (convert/dequantize.py). Embeddings, output layer, norms, routers and projections of
multi-token prediction keep the type of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_trainer.convert.stream import Piece
from megatron_trainer.convert.table import Entry
from megatron_trainjob.quantization import block_sizes

BLOCK = 128
FP8 = torch.float8_e4m3fn
SCALE = "_scale_inv"
"""What the name of a weight's scales adds to its own."""
_LARGEST = torch.finfo(FP8).max
_ALIGNED = 8
"""Elements whose multiple an FP8 tensor must have, so that the tensor behind it in a file is aligned."""


def is_quantized(entry: Entry, pieces: Sequence[Piece]) -> bool:
    """Whether the tensors of an entry are stored in FP8: weights of linears whose blocks no reader can mistake."""
    is_linear = ".linear_" in entry.name and entry.name.endswith(".weight")
    return is_linear and all(len(piece.shape) == 2 and _has_blocks(piece.shape) for piece in pieces)


def _has_blocks(shape: Sequence[int]) -> bool:
    try:
        block_sizes(shape, _grid(shape), (BLOCK, BLOCK))
    except ValueError:
        return False
    return shape[0] * shape[1] % _ALIGNED == 0


def _grid(shape: Sequence[int]) -> tuple[int, int]:
    return -(-shape[0] // BLOCK), -(-shape[1] // BLOCK)


def quantized_pieces(piece: Piece) -> tuple[Piece, Piece]:
    """The scales and the weight of a tensor that is stored in FP8."""
    scales = Piece(name=piece.name + SCALE, shape=_grid(piece.shape), dtype=torch.float32)
    return scales, replace(piece, dtype=FP8)


def quantized(stream: Iterator[tuple[str, Tensor]], names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """The stream with scales and FP8 weight in place of each of the tensors `names`."""
    for name, tensor in stream:
        if name not in names:
            yield name, tensor
            continue
        scales, weight = quantize(tensor)
        yield name + SCALE, scales
        yield name, weight


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(scales [ceil(rows / 128), ceil(columns / 128)] float32, weight [rows, columns] e4m3). A block of zeros has 1."""
    rows, columns = weight.shape
    height, width = _grid(weight.shape)
    padded = weight.new_zeros(height * BLOCK, width * BLOCK, dtype=torch.float32)
    padded[:rows, :columns] = weight
    blocks = padded.view(height, BLOCK, width, BLOCK)
    largest = blocks.abs().amax(dim=(1, 3))
    scales = torch.where(largest > 0, largest / _LARGEST, torch.ones_like(largest))
    divided = (blocks / scales[:, None, :, None]).clamp(-_LARGEST, _LARGEST).to(FP8)
    return scales, divided.view(height * BLOCK, width * BLOCK)[:rows, :columns]


def config_section(every: Sequence[Piece]) -> Mapping[str, object]:
    """quantization_config for a model of these tensors: transformers and vLLM read the modules it names in full."""
    stored = {piece.name for piece in every}
    matrices = [piece.name for piece in every if len(piece.shape) == 2 and piece.name.endswith(".weight")]
    kept = [name for name in matrices if name + SCALE not in stored and not name.endswith("embed_tokens.weight")]
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": sorted({"lm_head", *(name.removesuffix(".weight") for name in kept)}),
    }
