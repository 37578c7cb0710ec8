"""The folder of an odd model: weights made by transformers from its very config.json, stored in one of many ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.models import published_weights as published
from tests.support.models.odd_models import OddModel

_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_BLOCK = 20
_MATRIX_SPREAD, _VECTOR_SPREAD, _BIAS_SPREAD = 0.1, 0.3, 0.05

Tensors = dict[str, torch.Tensor]

QUANTIZED: Mapping[str, tuple[dict[str, Any], published.Quantize]] = {
    "blocks": (published.fine_grained(_BLOCK), partial(published.by_blocks, block=_BLOCK)),
    "channels": (published.compressed("channel"), published.by_channel),
    "tensors": (published.compressed("tensor"), published.by_tensor),
}


def write(odd: OddModel, directory: Path) -> Path:
    """Its folder. Raises what transformers raises on a config.json that it does not take."""
    fields = {key: value for key, value in odd.config.items() if key not in ("model_type", "quantization_config")}
    kind = "deepseek_v3" if odd.family == "kimi_k2" else odd.family
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(odd.seed)
        config = AutoConfig.for_model(kind, **json.loads(json.dumps(fields)))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        _randomize(model)
    directory.mkdir(parents=True)
    model.save_pretrained(directory)
    quantization = QUANTIZED.get(odd.storage)
    stated = {**odd.config, **({"quantization_config": quantization[0]} if quantization else {})}
    (directory / "config.json").write_text(json.dumps(stated, indent=1))
    _store(odd, directory)
    return directory


def _randomize(model: Any) -> None:
    """Weights that make every part matter: norms away from one, biases away from zero, experts apart."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = _MATRIX_SPREAD if parameter.ndim > 1 else _VECTOR_SPREAD
            center = 1.0 if "norm" in name and parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn_like(parameter) * spread + center)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * _BIAS_SPREAD)


def _store(odd: OddModel, directory: Path) -> None:
    """Brings the one safetensors file of `directory` into the storage of the model."""
    single = directory / "model.safetensors"
    dtype = getattr(torch, odd.config.get("dtype") or odd.config.get("torch_dtype") or "float32")
    tensors = {
        name: tensor if name.endswith("correction_bias") else tensor.to(dtype)
        for name, tensor in load_file(single).items()
    }
    single.unlink()
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    change = _CHANGES.get(odd.storage)
    stored = change(tensors, odd) if change else tensors
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    _write_files(odd.storage, directory, stored, other)


def _write_files(storage: str, directory: Path, tensors: Tensors, other: Tensors) -> None:
    """other: of the source that transformers does not read."""
    if storage in ("shards", "torch shards"):
        _write_shards(directory, tensors, is_torch=storage.startswith("torch"))
    elif storage == "torch":
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    if storage == "two sources":
        torch.save(other, directory / "pytorch_model.bin")
    if storage == "an index beside the file":
        _write_shards(directory, other, is_torch=False)


def _write_shards(directory: Path, tensors: Tensors, *, is_torch: bool) -> None:
    stem, suffix = ("pytorch_model", "bin") if is_torch else ("model", "safetensors")
    files = {name: f"{stem}-{number % 2 + 1:05d}-of-00002.{suffix}" for number, name in enumerate(sorted(tensors))}
    for file in sorted(set(files.values())):
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        if is_torch:
            torch.save(part, directory / file)
        else:
            save_file(part, directory / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def _with_frequencies(tensors: Tensors, _: OddModel) -> Tensors:
    return {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}


def _with_copied_output(tensors: Tensors, _: OddModel) -> Tensors:
    return {_OUTPUT: tensors[_EMBEDDING].clone(), **tensors}


def _with_other_output(tensors: Tensors, _: OddModel) -> Tensors:
    return {_OUTPUT: tensors[_EMBEDDING] + 1, **tensors}


def _with_output_alone(tensors: Tensors, _: OddModel) -> Tensors:
    if _OUTPUT in tensors:
        return tensors
    return {_OUTPUT if name == _EMBEDDING else name: tensor for name, tensor in tensors.items()}


def _without_output(tensors: Tensors, _: OddModel) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != _OUTPUT}


def _with_prediction_layer(tensors: Tensors, odd: OddModel) -> Tensors:
    last = odd.config["num_hidden_layers"]
    first = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.0.")}
    return {**tensors, **{name.replace("s.0.", f"s.{last}.", 1): tensor.clone() for name, tensor in first.items()}}


def _in_fp8(tensors: Tensors, odd: OddModel) -> Tensors:
    return published.in_fp8(tensors, *QUANTIZED[odd.storage])


_CHANGES: Mapping[str, Callable[[Tensors, OddModel], Tensors]] = {
    "left-over frequencies": _with_frequencies,
    "an output layer beside the tied embedding": _with_copied_output,
    "another output layer beside the tied embedding": _with_other_output,
    "only the output layer of the tied embedding": _with_output_alone,
    "no output layer": _without_output,
    "prediction layers": _with_prediction_layer,
    **dict.fromkeys(QUANTIZED, _in_fp8),
}
