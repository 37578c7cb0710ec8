"""Tiny models whose checkpoints hold multi-token-prediction layers, and what such layers compute in plain torch.

Published checkpoints number these layers after the last one, or (Qwen3-Next) have the only one beside the decoder;
transformers reads none of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.models import tiny_model

LAYERS = 4
FACTOR = 0.3
IN_ONE_LIST = "in one list"
"""The folder of a model with its layers in one list, as transformers builds them."""
BESIDE = {
    "enorm": "mtp.pre_fc_norm_embedding",
    "hnorm": "mtp.pre_fc_norm_hidden",
    "eh_proj": "mtp.fc",
    "shared_head.norm": "mtp.norm",
}
"""The parts of a layer beside the decoder."""


def make(name: str, root: Path, *, number: int = 2) -> Path:
    """The folder of a model of four layers and `number` layers for multi-token prediction."""
    import torch
    from safetensors.torch import load_file, save_file

    settings: dict[str, Any] = {"num_hidden_layers": LAYERS + number}
    if is_beside(name):
        settings["layer_types"] = ["linear_attention", "full_attention"] * 2 + ["full_attention"]
    directory = tiny_model.make(name, root, **settings)
    config = json.loads((directory / "config.json").read_text())
    if config["num_hidden_layers"] == LAYERS:
        return directory
    draw = torch.Generator().manual_seed(3)
    stored = load_file(directory / "model.safetensors")
    hidden = config["hidden_size"]
    for layer in range(LAYERS, LAYERS + number):
        projection = torch.randn(hidden, 2 * hidden, generator=draw) / hidden**0.5
        stored[f"{part_of(name, layer, 'eh_proj')}.weight"] = projection
        for norm in ("enorm", "hnorm", "shared_head.norm"):
            usual = 0 if is_beside(name) else 1
            stored[f"{part_of(name, layer, norm)}.weight"] = usual + 0.2 * torch.randn(hidden, generator=draw)
        if not is_beside(name):
            stored[f"model.layers.{layer}.embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
            stored[f"model.layers.{layer}.shared_head.head.weight"] = stored["lm_head.weight"].clone()
    stored = {_in_files(name, each): tensor for each, tensor in stored.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    config.pop("num_mtp_layers", None)
    config["num_hidden_layers"] = LAYERS
    if is_beside(name):
        config["layer_types"] = config["layer_types"][:LAYERS]
    else:
        config["num_nextn_predict_layers"] = number
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def make_seeing(name: str, root: Path, **settings: Any) -> Path:
    """The folder of a model with images and one further layer, stored beside the decoder. settings: of config.json."""
    import torch
    from safetensors.torch import load_file, save_file

    kinds = ["linear_attention", "full_attention"] * 2 + ["full_attention"]
    directory = tiny_model.make(name, root, num_hidden_layers=LAYERS + 1, layer_types=kinds, **settings)
    config = json.loads((directory / "config.json").read_text())
    if config["text_config"]["num_hidden_layers"] == LAYERS:
        return directory
    draw = torch.Generator().manual_seed(3)
    stored = load_file(directory / "model.safetensors")
    shutil.copytree(directory, directory / IN_ONE_LIST)
    hidden = config["text_config"]["hidden_size"]
    further = {"mtp.fc.weight": torch.randn(hidden, 2 * hidden, generator=draw) / hidden**0.5}
    for part in ("enorm", "hnorm", "shared_head.norm"):
        further[f"{BESIDE[part]}.weight"] = 0.2 * torch.randn(hidden, generator=draw)
    within = f"model.language_model.layers.{LAYERS}."
    renamed = {key.replace(within, "mtp.layers.0."): each for key, each in stored.items()}
    save_file({**renamed, **further}, directory / "model.safetensors", metadata={"format": "pt"})
    config["text_config"] |= {"num_hidden_layers": LAYERS, "layer_types": kinds[:LAYERS], "mtp_num_hidden_layers": 1}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def is_beside(family: str) -> bool:
    """Whether the layer lies beside the decoder; there is one then, and norms scale by one plus their weight."""
    return family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")


def part_of(family: str, layer: int, part: str) -> str:
    """The name of a part of a layer that other layers lack."""
    return BESIDE[part] if is_beside(family) else f"model.layers.{layer}.{part}"


def _in_files(family: str, name: str) -> str:
    """The name in files of a tensor that transformers has in one list of layers."""
    within = f"model.layers.{LAYERS}."
    return name.replace(within, "mtp.layers.0.") if is_beside(family) else name


def truth(
    directory: Path, rows: Sequence[Any], lengths: Sequence[Sequence[int]], weights: Sequence[Any]
) -> dict[str, Any]:
    """{sums: [1 + D] of all rows, counts: the same, loss, gradients by checkpoint name}.

    rows: int64 [T] each, of sequences of these lengths; weights: float32 [T], of the token after each position.
    """
    import torch
    from safetensors.torch import load_file

    model, extra, number = _model(directory)
    family = model.config.model_type
    loss, sums, counts = torch.zeros(()), torch.zeros(1 + number), torch.zeros(1 + number)
    total = sum(float((each != 0).sum()) for each in weights)
    for row, parts, weight in zip(rows, lengths, weights, strict=True):
        per_row = torch.stack(
            [
                _losses(model, extra, number, ids, w)
                for ids, w in zip(row.split(parts), weight.split(parts), strict=True)
            ]
        ).sum(0)
        count = torch.stack([_counts(number, w) for w in weight.split(parts)]).sum(0)
        sums, counts = sums + per_row.detach(), counts + count
        scaled = per_row[0] + FACTOR / number * (per_row[1:] * count[0] / count[1:]).sum()
        loss = loss + scaled / total
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    model.save_pretrained(directory / "gradients")
    buffers = {name for name, _ in model.named_buffers()}
    gradients = load_file(directory / "gradients" / "model.safetensors")
    gradients = {_in_files(family, name): each for name, each in gradients.items() if name not in buffers}
    return {
        "sums": sums,
        "counts": counts,
        "loss": loss.detach(),
        "gradients": gradients | {name: each.grad for name, each in extra.items()},
    }


def _model(directory: Path) -> tuple[Any, dict[str, Any], int]:
    """transformers' model with all layers in one list, and the other tensors of the additional ones."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    config = tiny_model.transformers_config(directory)
    family = config.model_type
    number = json.loads((directory / "config.json").read_text()).get("num_nextn_predict_layers", 1)
    config.num_hidden_layers = LAYERS + number
    if is_beside(family):
        config.layer_types = [*config.layer_types, "full_attention"]
    stored = load_file(directory / "model.safetensors")
    if is_beside(family):
        source, directory = directory, directory / IN_ONE_LIST
        directory.mkdir(exist_ok=True)
        shutil.copy(source / "generation_config.json", directory)
        in_list = {name.replace("mtp.layers.0.", f"model.layers.{LAYERS}."): each for name, each in stored.items()}
        save_file(in_list, directory / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    own = {f"{part_of(family, LAYERS + each, part)}.weight" for each in range(number) for part in BESIDE}
    return model, {name: stored[name].requires_grad_() for name in own}, number


def _losses(model: Any, extra: dict[str, Any], number: int, ids: Any, weight: Any) -> Any:
    """The weighted sums of the losses of one sequence [1 + D], by the formulas of the report on DeepSeek-V3."""
    import torch

    decoder, epsilon = model.model, model.config.rms_norm_eps
    family = model.config.model_type
    centered = 1.0 if is_beside(family) else 0.0
    length = len(ids)
    positions = torch.arange(length)[None]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    hidden = decoder.embed_tokens(ids[None])
    angles = decoder.rotary_emb(hidden, positions)

    def through(layer: Any, states: Any) -> Any:
        seen = None if hasattr(layer, "linear_attn") else mask
        found = layer(states, attention_mask=seen, position_ids=positions, position_embeddings=angles)
        return found[0] if isinstance(found, tuple) else found

    def norm(states: Any, scale: Any) -> Any:
        return (centered + scale) * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + epsilon)

    for layer in decoder.layers[:LAYERS]:
        hidden = through(layer, hidden)
    hidden = decoder.norm(hidden)
    found = [_cross_entropy(model.lm_head(hidden)[0], ids, weight, distance=0)]
    for distance in range(1, number + 1):
        place = partial(part_of, family, LAYERS + distance - 1)
        later = torch.cat([ids[distance:], ids.new_zeros(min(distance, length))])
        both = [
            norm(decoder.embed_tokens(later[None]), extra[f"{place('enorm')}.weight"]),
            norm(hidden, extra[f"{place('hnorm')}.weight"]),
        ]
        states = torch.cat(both, -1) @ extra[f"{place('eh_proj')}.weight"].T
        states = through(decoder.layers[LAYERS + distance - 1], states)
        hidden = norm(states, extra[f"{place('shared_head.norm')}.weight"])
        found.append(_cross_entropy(model.lm_head(hidden)[0], ids, weight, distance=distance))
    return torch.stack(found)


def _cross_entropy(logits: Any, ids: Any, weight: Any, *, distance: int) -> Any:
    """Position i predicts token i + 1 + distance, with the weight of that token."""
    import torch

    number = max(len(ids) - 1 - distance, 0)
    losses = torch.nn.functional.cross_entropy(logits[:number], ids[1 + distance :], reduction="none")
    return (losses * weight[distance : distance + number]).sum()


def _counts(number: int, weight: Any) -> Any:
    """Tokens with each loss in a sequence [1 + D]."""
    import torch

    return torch.stack([(weight[distance:] != 0).sum() for distance in range(number + 1)]).float()
