"""Model folders with weights as publishers store them: FP8 with scales, torch's own files. Made from tiny models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
_LINEAR = re.compile(r"layers\.\d+\.(self_attn|mlp|feed_forward)\..*_proj.*\.weight$")


def by_blocks(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(FP8 weight, float32 scales [ceil(rows / block), ceil(columns / block)])."""
    rows, columns = (range(0, size, block) for size in weight.shape)
    scales = torch.stack(
        [torch.stack([weight[r : r + block, c : c + block].abs().max() for c in columns]) for r in rows]
    )
    scales = scales / FP8_MAX
    spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)[: weight.shape[0], : weight.shape[1]]
    return (weight / spread).to(torch.float8_e4m3fn), scales


def by_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(FP8 weight, bfloat16 scales [rows, 1])."""
    scales = (weight.abs().amax(1, keepdim=True) / FP8_MAX).to(torch.bfloat16)
    return (weight / scales.float()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scales


def by_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(FP8 weight, bfloat16 scale [1])."""
    scale = (weight.abs().max() / FP8_MAX).to(torch.bfloat16).reshape(1)
    return (weight / scale.float()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def compressed(strategy: str, **changes: Any) -> dict[str, Any]:
    """quantization_config of compressed-tensors."""
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": {**weights, **changes}, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*router$"],
    }


def fine_grained(block: int | None) -> dict[str, Any]:
    """quantization_config of FP8 with block scales."""
    size = {} if block is None else {"weight_block_size": [block, block]}
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", **size}


Quantize = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def in_fp8(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], quantize: Quantize
) -> dict[str, torch.Tensor]:
    """The tensors of a model whose linears in the layers are stored in FP8, with what lies beside them."""
    is_fine_grained = config["quant_method"] == "fp8"
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not _LINEAR.search(name):
            found[name] = tensor
            continue
        found[name], found[name + ("_scale_inv" if is_fine_grained else "_scale")] = quantize(tensor.float())
        if not is_fine_grained:
            found[name.removesuffix("weight") + "input_scale"] = torch.tensor(1.0)
    return found


def quantized(source: Path, target: Path, config: dict[str, Any], quantize: Quantize) -> Path:
    """A copy of the model whose linears in the layers are stored in FP8, with what lies beside them."""
    shutil.copytree(source, target)
    tensors = in_fp8(load_file(source / "model.safetensors"), config, quantize)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**content, "quantization_config": config}))
    return target


def pickled(source: Path, target: Path, *, shards: int = 1, legacy: bool = False) -> Path:
    """A copy of the model with pytorch_model.bin files in the place of safetensors."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    save = {"_use_new_zipfile_serialization": not legacy}
    if shards == 1:
        torch.save(tensors, target / "pytorch_model.bin", **save)
        return target
    files = {
        name: f"pytorch_model-{number % shards + 1:05d}-of-{shards:05d}.bin" for number, name in enumerate(tensors)
    }
    for file in sorted(set(files.values())):
        torch.save({name: tensor for name, tensor in tensors.items() if files[name] == file}, target / file, **save)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return target
