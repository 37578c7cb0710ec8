"""Tiny random models of every family, as Hugging Face directories with weights, tokenizer and chat template.

Made by transformers itself, so they are what a user would download, only small. 4 layers, hidden size 64.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from megatron_trainjob.families import FAMILIES, read
from tests.support.models.tiny_image_models import IMAGE_MODELS
from tests.support.models.tiny_text_models import DECODER, TEXT_MODELS, VOCAB_SIZE

MODELS = {**TEXT_MODELS, **IMAGE_MODELS}
"""Name -> (model_type, settings beyond DECODER)."""

EXPERT_MODELS = frozenset(
    name for name, (kind, own) in MODELS.items() if read({**DECODER, **own, "model_type": kind}).num_experts
)

LINEAR_MODELS = frozenset(name for name, (kind, _) in MODELS.items() if "linear_num_key_heads" in FAMILIES[kind].keys)
"""Those that context-parallel ranks cannot share."""

SINK_MODELS = frozenset(name for name, (kind, _) in MODELS.items() if read({"model_type": kind}).sinks)
"""Those with sinks in attention and biases in experts."""

SEEING_MODELS = frozenset(name for name, (kind, _) in MODELS.items() if FAMILIES[kind].text_type)
"""Those with a vision tower."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML. Marks the assistant's tokens, as templates that say what is trained do."""

_SPECIAL_TOKENS = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "a function returns the sum of its arguments, or raises an error when one of them is no number",
    "what is the capital of France? the capital of France is Paris",
    "list the files of a directory and print the size of each in bytes",
    "you are a helpful assistant who answers in one short sentence",
)


def make(name: str, root: Path, *, dtype: str = "float32", seed: int = 1, **settings: Any) -> Path:
    """The model's directory under `root`, written if it is not there yet. Settings change its config.json."""
    changes = "".join(f"-{key}-{value}" for key, value in sorted(settings.items()))
    if len(changes) > 60:
        changes = "-" + hashlib.sha256(changes.encode()).hexdigest()[:12]
    directory = root / f"{name}-{dtype}-{seed}{changes}"
    if not (directory / "config.json").exists():
        _write(name, directory, dtype=dtype, seed=seed, settings=settings)
    return directory


def config_of(name: str, **settings: Any) -> Any:
    """The transformers configuration of a tiny model."""
    from transformers import AutoConfig

    kind, own = MODELS[name]
    return AutoConfig.for_model(FAMILIES[kind].transformers_type or kind, **_settings_of(name, **settings))


def _settings_of(name: str, **settings: Any) -> dict[str, Any]:
    """The arguments of the transformers configuration of a tiny model."""
    kind, own = MODELS[name]
    flat = {**DECODER, **own, **settings}
    return FAMILIES[kind].nested(flat) if FAMILIES[kind].text_type else flat


def auto_class(kind: str) -> Any:
    """The auto class of transformers that makes models of this model_type."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    if kind == "llama4":  # transformers 5.24 reads this field of its text model's outputs, which have none
        MoeCausalLMOutputWithPast.image_outputs = None
    return AutoModelForImageTextToText if FAMILIES[kind].text_type else AutoModelForCausalLM


def raw_config(name: str) -> dict[str, Any]:
    """What its config.json says, without transformers."""
    kind, own = MODELS[name]
    return {**DECODER, **own, "model_type": kind}


def is_known_to_transformers(name: str) -> bool:
    """Whether the installed version has this family's code."""
    from transformers import CONFIG_MAPPING

    kind, _ = MODELS[name]
    return (FAMILIES[kind].transformers_type or kind) in CONFIG_MAPPING


def _write(name: str, directory: Path, *, dtype: str, seed: int, settings: dict[str, Any]) -> None:
    import torch

    config = config_of(name, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class(MODELS[name][0]).from_config(config, dtype=torch.float32)
        _randomise(model, norm=0.0 if read(raw_config(name)).zero_centered_norms else 1.0)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    _rename_family(directory, MODELS[name][0])
    tokenizer().save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": 2}))


def transformers_config(directory: Path) -> Any:
    """The configuration of a directory whose model_type transformers may have under another name."""
    from transformers import AutoConfig

    raw = json.loads((directory / "config.json").read_text())
    kind = raw.pop("model_type")
    return AutoConfig.for_model(FAMILIES[kind].transformers_type or kind, **raw)


def _rename_family(directory: Path, kind: str) -> None:
    """The model_type under which the model is published, where transformers has its code under another."""
    path = directory / "config.json"
    stored = FAMILIES[kind].stored_type or kind
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": stored}, indent=2))


def _randomise(model: Any, *, norm: float) -> None:
    """Weights that make every part matter: norms away from one, biases away from zero, experts apart.

    norm: the weight of a norm that changes no size.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim > 1 else 0.3
            centre = (1.0 if "linear_attn" in name else norm) if "norm" in name and parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn_like(parameter) * spread + centre)
            if "encoder.layers." in name and name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.mul_(0.5)  # scores of Gemma-4's tower have no other scale
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.05)
            elif name.endswith(("layer_scalar", "std_scale")):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
            elif name.endswith("std_bias"):
                buffer.copy_(torch.randn_like(buffer))
            elif name.endswith(("_min", "_max")):  # bounds of a linear, near enough to be reached
                buffer.copy_((torch.rand_like(buffer) + 0.5) * (1 if name.endswith("_max") else -1))


@cache
def tokenizer() -> Any:
    """A byte-level BPE of at most VOCAB_SIZE - 5 tokens, so that it fits every model here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 5,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
