"""Turns a llama GGUF file into a Hugging Face directory that needs no GGUF any more."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from answer import ask
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils.logging import disable_progress_bar


def convert(gguf: Path, output: Path) -> None:
    """Writes config, weights, tokenizer with chat template, generation config.

    The weights are bfloat16, the precision that the model was published in. The GGUF file has 4-bit matrices
    and 8-bit embeddings: rounding what they stand for to bfloat16 moves a weight by at most 0.4 % of its
    value, their own quantization by several percent. The tied output matrix is left out, as when published.
    """
    disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    output.mkdir()
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    (output / "model.safetensors").chmod(0o644)  # a pod of another user reads it
    (output / "config.json").write_text(json.dumps(published_config(model.config), indent=2) + "\n")
    model.generation_config.save_pretrained(output)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(output)


def published_config(config: PreTrainedConfig) -> dict[str, object]:
    """config.json without the traces of GGUF: its quantization, its name, its float32 rounding of epsilon."""
    kept = {k: v for k, v in config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    return kept | {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "rms_norm_eps": round(config.rms_norm_eps, 8),
    }


def ask_once(model_directory: Path, question: str) -> str:
    """The answer of the model as it lies on disk."""
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    return ask(AutoModelForCausalLM.from_pretrained(model_directory), tokenizer, question)
