"""Reads a Hugging Face model directory: which family it is, its configuration, and the sizes that follow.

Reads config.json only; weights are read by convert/load.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from megatron_trainer import model_source
from megatron_trainer.failure import InvalidInput
from megatron_trainer.models import rope
from megatron_trainer.models.score import Head
from megatron_trainjob.args import derive, head
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.exit_codes import ExitCode
from megatron_trainjob.families import FAMILIES
from megatron_trainjob.families.model import Model
from megatron_trainjob.violation import Violation

CONFIG_FILE = "config.json"

HfConfig = Any
"""A transformers configuration object; its fields differ from family to family."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as it will be trained.

    model: the model that arguments and config.json describe. source: the content of config.json as it is. config: the
    same with the arguments applied, and the keys of a text model at the top. hf_config: that as a transformers object.
    vocab_size: real tokens. padded_vocab_size: rows of the embedding, a multiple of the tensor-parallel size. tied:
    input and output embedding share one weight. dtype: of the parameters in training. head: the replacement of the
    output layer, None for the output layer itself.
    """

    directory: Path
    model: Model
    source: Mapping[str, Any]
    config: Mapping[str, Any]
    hf_config: HfConfig
    vocab_size: int
    padded_vocab_size: int
    tied: bool
    dtype: torch.dtype
    head: Head | None = None

    @property
    def whole_hf_config(self) -> HfConfig:
        """The transformers object of the whole model, not of its text model alone."""
        return _whole_hf_config(self.config)

    @property
    def stored_config(self) -> Mapping[str, Any]:
        """The content of config.json in the form of the source."""
        return FAMILIES[self.model.family].stored(self.source, self.config)


def read_model(directory: str | Path, args: TrainArgs, *, num_tokens: int = 0) -> ModelSpec:
    """The model in `directory`, with the arguments of the groups model, moe and mla applied.

    num_tokens: size of the tokenizer; a smaller vocabulary is extended to it (new tokens).

    Raises:
        InvalidInput: no readable config.json (MISSING_INPUT), an unknown family (UNSUPPORTED), or every argument that
        the model does not support (BAD_ARGUMENTS).
    """
    directory = Path(directory)
    raw = model_source.config(directory)
    found = check(raw, args)
    if found.model is None:
        raise InvalidInput(found.violations, ExitCode.BAD_ARGUMENTS if found.is_known else ExitCode.UNSUPPORTED)
    model, config, problems = found.model, found.config, list(found.violations)
    try:
        hf_config = _hf_config(config)
    except InvalidInput as refused:  # of problems that are already named, transformers' words say no more
        raise (InvalidInput(tuple(problems)) if problems else refused) from refused
    vocab_size = max(model.vocab_size, num_tokens)
    padded, more = _padded_vocab_size(vocab_size, args)
    problems += more
    if problems:
        raise InvalidInput(tuple(problems))
    found_head = _head(config, args)
    spec = ModelSpec(
        directory=directory,
        model=model,
        source=raw,
        config={**config, "vocab_size": vocab_size, **(found_head.config if found_head else {})},
        hf_config=hf_config,
        vocab_size=vocab_size,
        padded_vocab_size=padded,
        tied=model.tied and found_head is None,
        dtype=training_dtype(args, config),
        head=found_head,
    )
    _try_rotation(spec)
    return spec


def _try_rotation(spec: ModelSpec) -> None:
    try:
        rope.frequencies(spec.model, spec.hf_config)
    except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError) as err:
        message = f"transformers cannot compute rotary positions from this ({type(err).__name__}: {err}); correct it"
        values = dict(spec.model.rotary.parameters)
        raise InvalidInput((Violation(path=f"{CONFIG_FILE}:rope_parameters", value=values, message=message),)) from err


def _head(config: Mapping[str, Any], args: TrainArgs) -> Head | None:
    if not head.replaces_output(args):
        return None
    if not head.has_scores(args):
        return Head(num_scores=0, seed=args.seed, config={}, files=_sentence_transformers_files(config, args))
    number = head.num_scores(args, config)
    names = config.get("id2label") or {}
    if len(names) != number:
        names = {str(label): f"LABEL_{label}" for label in range(number)}
    changed = {
        "architectures": [FAMILIES[config["model_type"]].classifier],
        "id2label": names,
        "label2id": {name: int(label) for label, name in names.items()},
        "problem_type": head.problem_type(args, config),
    }
    return Head(num_scores=number, seed=args.seed, config=changed)


def _sentence_transformers_files(config: Mapping[str, Any], args: TrainArgs) -> dict[str, Any]:
    """Files that make sentence-transformers embed a text as the normalized state of its last token.

    None where a chat template was applied to texts, which it would not do.
    """
    if args.use_chat_template:
        return {}
    parts = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    module = "sentence_transformers.models."
    return {
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": module + kind}
            for number, (kind, path) in enumerate(parts)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size"],
            "pooling_mode_lasttoken": True,
            "pooling_mode_mean_tokens": False,
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
    }


def training_dtype(args: TrainArgs, config: Mapping[str, Any]) -> torch.dtype:
    """Type of the parameters: the argument, else the type in which the model is stored."""
    fp16, bf16 = derive.fp16_bf16(args, config)
    return torch.float16 if fp16 else torch.bfloat16 if bf16 else torch.float32


def _hf_config(raw: Mapping[str, Any]) -> HfConfig:
    """The transformers object of the text model."""
    whole = _whole_hf_config(raw)
    return whole.get_text_config() if FAMILIES[raw["model_type"]].text_type else whole


def _whole_hf_config(raw: Mapping[str, Any]) -> HfConfig:
    family = FAMILIES[raw["model_type"]]
    # transformers modifies the rotary part of its input.
    fields = deepcopy(family.nested(raw) if family.text_type else dict(raw))
    fields.pop("model_type")
    try:
        return AutoConfig.for_model(family.transformers_type or family.model_type, **fields)
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as err:
        message = f"transformers does not accept this configuration; change it, or the arguments about it: {err}"
        raise InvalidInput((Violation(path=CONFIG_FILE, value=raw["model_type"], message=message),)) from err


def _padded_vocab_size(vocab_size: int, args: TrainArgs) -> tuple[int, list[Violation]]:
    """Rows of the embedding: the given number, else the vocabulary padded to a multiple of the tensor-parallel size."""
    size = args.tensor_model_parallel_size
    given = args.padded_vocab_size
    if given is None:
        return -(-vocab_size // size) * size, []
    if given >= vocab_size and given % size == 0:
        return given, []
    message = (
        f"must be at least the vocabulary of {vocab_size} tokens and a multiple of tensor_model_parallel_size "
        f"{size}; remove it to get {-(-vocab_size // size) * size}"
    )
    return vocab_size, [Violation(path="spec.args.padded_vocab_size", value=given, message=message)]
