"""Damaged model folders, adapters, data and checkpoints, each as one change of a folder that is right.

A value is (change of the folder, exit codes of the contract that fit). Used by test_damaged_inputs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Damage = Callable[[Path], object]

BROKEN = '{"a": '


def write(name: str, content: str | bytes) -> Damage:
    """Puts a file with this content in the folder."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Damage:
    """Takes a file away."""
    return lambda folder: (folder / name).unlink()


def merge(name: str, **values: object) -> Damage:
    """Sets keys of a JSON file."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps({**content, **values}))

    return damage


def tensors(change: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> Damage:
    """Changes the tensors of a file."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        content = load_file(folder / name)
        change(content)
        save_file({key: value.clone() for key, value in content.items()}, folder / name, {"format": "pt"})

    return damage


def shards(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Splits the weights into two files with an index, which is changed."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        content = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(content)
        files = {name: "a.safetensors" if name in names[::2] else "b.safetensors" for name in names}
        for file in set(files.values()):
            save_file({name: content[name] for name in names if files[name] == file}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": files}
        change(index)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _move(index: dict[str, Any]) -> None:
    index["weight_map"]["model.norm.weight"] = {"a.safetensors": "b.safetensors", "b.safetensors": "a.safetensors"}[
        index["weight_map"]["model.norm.weight"]
    ]


NORM = "model.norm.weight"
CONFIG: Mapping[str, Damage] = {
    "config: broken": write("config.json", BROKEN),
    "config: empty": write("config.json", ""),
    "config: a list": write("config.json", "[]"),
    "config: Latin-1": write("config.json", b'{"model_type": "llama", "x": "\xe9"}'),
    "config: missing": remove("config.json"),
    "config: no model_type": merge("config.json", model_type=None),
    "config: model_type a list": merge("config.json", model_type=["llama"]),
    **{
        f"config: {key} {value!r}": merge("config.json", **{key: value})
        for key, values in {
            "hidden_size": ("64", 64.5, None, [64], -1, True),
            "num_hidden_layers": ("4", 0, 3),
            "num_attention_heads": ("4", 0, 3),
            "num_key_value_heads": ("2", 3),
            "vocab_size": ("320", 1, 321, None),
            "rms_norm_eps": ("1e-5", 0, None),
            "max_position_embeddings": ("512", 0),
            "head_dim": ("16", 0, 15, 8),
            "tie_word_embeddings": ("true", True),
            "hidden_act": ("tanhshrink", None, 3),
            "initializer_range": ("0.02", -1),
            "attention_bias": ("false", True),
            "rope_scaling": ("yarn", [1], 3, {}, {"type": "nope", "factor": 2.0}, {"rope_type": "yarn"}),
            "rope_parameters": (
                "x",
                {"rope_type": 3},
                {"rope_type": "yarn", "factor": "4"},
                {"rope_type": None},
                {"rope_type": "default", "rope_theta": 0},
            ),
            "rope_theta": ("10000",),
            "quantization_config": ("fp8", [], 3, {"quant_method": "nope"}, {"quant_method": None}, {"a": 1}),
            "architectures": ("x", 3, [3]),
            "id2label": ("x", [1], {"x": 3}),
            "auto_map": (3, {"AutoConfig": "x.Y"}),
            "pad_token_id": ("0", 9999, -1, [0]),
            "eos_token_id": ("2", [2, "3"], {"a": 1}),
            "transformers_version": (3,),
        }.items()
        for value in values
    },
    **{f"config: dtype {value!r}": merge("config.json", dtype=value) for value in ("auto", "nope", 3, None, ["x"])},
    **{f"config: torch_dtype {value!r}": merge("config.json", torch_dtype=value) for value in ("auto", "float64", {})},
}
GENERATION: Mapping[str, Damage] = {
    "generation: broken": write("generation_config.json", BROKEN),
    "generation: a list": write("generation_config.json", "[]"),
    "generation: eos a text": merge("generation_config.json", eos_token_id="2"),
    "generation: eos beyond": merge("generation_config.json", eos_token_id=99999),
    "generation: eos null in a list": merge("generation_config.json", eos_token_id=[2, None]),
    "generation: eos an object": merge("generation_config.json", eos_token_id={"a": 1}),
}
TOKENIZER: Mapping[str, Damage] = {
    "tokenizer.json: broken": write("tokenizer.json", BROKEN),
    "tokenizer.json: a list": write("tokenizer.json", "[]"),
    "tokenizer.json: no model": write("tokenizer.json", "{}"),
    "tokenizer.json: model a text": merge("tokenizer.json", model="x"),
    "tokenizer.json: vocab a text": merge("tokenizer.json", model={"type": "BPE", "vocab": "x", "merges": []}),
    "tokenizer.json: vocab odd": merge("tokenizer.json", model={"type": "BPE", "vocab": {"a": "b"}, "merges": []}),
    "tokenizer.json: added odd": merge("tokenizer.json", added_tokens=["x"]),
    "tokenizer.json: added without id": merge("tokenizer.json", added_tokens=[{"content": "x"}]),
    "tokenizer.json: added a number": merge("tokenizer.json", added_tokens=3),
    "tokenizer.json: unigram odd": merge("tokenizer.json", model={"type": "Unigram", "vocab": [3]}),
    "tokenizer_config: broken": write("tokenizer_config.json", BROKEN),
    "tokenizer_config: a list": write("tokenizer_config.json", "[]"),
    "tokenizer_config: class unknown": merge("tokenizer_config.json", tokenizer_class="Nope"),
    "tokenizer_config: class a number": merge("tokenizer_config.json", tokenizer_class=3),
    "tokenizer_config: decoder odd": merge("tokenizer_config.json", added_tokens_decoder=["x"]),
    "tokenizer_config: decoder id": merge("tokenizer_config.json", added_tokens_decoder={"x": "y"}),
    "tokenizer_config: eos a number": merge("tokenizer_config.json", eos_token=3),
    "tokenizer_config: eos without content": merge("tokenizer_config.json", eos_token={"a": 1}),
    "tokenizer_config: extra a number": merge("tokenizer_config.json", additional_special_tokens=3),
    "tokenizer_config: length a text": merge("tokenizer_config.json", model_max_length="x"),
    "tokenizer_config: template a number": merge("tokenizer_config.json", chat_template=3),
    "tokenizer_config: templates odd": merge("tokenizer_config.json", chat_template=[{"name": "x"}]),
    "chat_template: no template": write("chat_template.jinja", "{% for %}"),
    "chat_template: fails": write("chat_template.jinja", "{{ messages.nope.nope }}"),
    "chat_template: Latin-1": write("chat_template.jinja", b"\xe9{{ messages }}"),
    "special_tokens_map: broken": write("special_tokens_map.json", BROKEN),
    "added_tokens: broken": write("added_tokens.json", BROKEN),
}
WEIGHTS: Mapping[str, Damage] = {
    "weights: missing": remove("model.safetensors"),
    "weights: broken": write("model.safetensors", b"x" * 200),
    "weights: empty": write("model.safetensors", b""),
    "weights: cut": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-100]
    ),
    "weights: one missing": tensors(lambda content: content.pop(NORM)),
    "weights: one more": tensors(lambda content: content.update(extra=content[NORM])),
    "weights: one of another shape": tensors(lambda content: content.update({NORM: content[NORM][:8]})),
    "weights: one a scalar": tensors(lambda content: content.update({NORM: content[NORM].sum()})),
    "weights: one of integers": tensors(lambda content: content.update({NORM: content[NORM].int()})),
    "weights: one complex": tensors(lambda content: content.update({NORM: content[NORM].to(dtype=_complex())})),
    "index: broken": lambda folder: (remove("model.safetensors")(folder), _index(folder, BROKEN)),
    "index: a list": lambda folder: (remove("model.safetensors")(folder), _index(folder, "[]")),
    "index: no map": shards(lambda index: index.pop("weight_map")),
    "index: map a list": shards(lambda index: index.update(weight_map=["x"])),
    "index: map a text": shards(lambda index: index.update(weight_map="x")),
    "index: empty map": shards(lambda index: index.update(weight_map={})),
    "index: file a number": shards(lambda index: index["weight_map"].update({NORM: 3})),
    "index: file a list": shards(lambda index: index["weight_map"].update({NORM: ["a.safetensors"]})),
    "index: shard missing": shards(lambda index: index["weight_map"].update({NORM: "c.safetensors"})),
    "index: wrong shard": shards(_move),
    "index: tensor missing": shards(lambda index: index["weight_map"].pop(NORM)),
    "index: one more": shards(lambda index: index["weight_map"].update(extra="a.safetensors")),
    "bin: broken": lambda folder: (remove("model.safetensors")(folder), write("pytorch_model.bin", b"x" * 99)(folder)),
}


def _complex() -> Any:
    import torch

    return torch.complex64


def _index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


MODEL: Mapping[str, Damage] = {**CONFIG, **GENERATION, **TOKENIZER, **WEIGHTS}

ADAPTER: Mapping[str, Damage] = {
    "adapter_config: broken": write("adapter_config.json", BROKEN),
    "adapter_config: a list": write("adapter_config.json", "[]"),
    "adapter_config: empty": write("adapter_config.json", "{}"),
    **{
        f"adapter_config: {key} {value!r}": merge("adapter_config.json", **{key: value})
        for key, values in {
            "r": ("4", 8, None, 0),
            "lora_alpha": ("8", 99, None),
            "peft_type": ("IA3", 3),
            "bias": (3, "lora_only"),
            "use_rslora": ("x", True),
            "use_dora": (True,),
            "target_modules": (3, ["nope"]),
            "rank_pattern": ({"q_proj": 8}, 3),
            "alpha_pattern": ({"q_proj": 99}, 3),
            "modules_to_save": (["lm_head"], 3),
        }.items()
        for value in values
    },
    "adapter: missing": remove("adapter_model.safetensors"),
    "adapter: broken": write("adapter_model.safetensors", b"x" * 99),
    "adapter: one missing": tensors(lambda content: content.popitem(), "adapter_model.safetensors"),
    "adapter: one more": tensors(
        lambda content: content.update(extra=next(iter(content.values()))), "adapter_model.safetensors"
    ),
    "adapter: one a scalar": tensors(
        lambda content: content.update({next(iter(content)): next(iter(content.values())).sum()}),
        "adapter_model.safetensors",
    ),
    "adapter: ranks differ": tensors(
        lambda content: content.update({key: value[:2] for key, value in content.items() if "lora_A" in key}),
        "adapter_model.safetensors",
    ),
}
