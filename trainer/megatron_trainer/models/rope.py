"""Rotary frequencies: taken from transformers' own initialisation, so that every scaling type is the
model's.

megatron-core hard-codes Llama 3's constants and lacks some types. Latent attention rotates by itself, see
models/families/deepseek.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_trainer.models.family import HfConfig
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

_BY_LENGTH = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Types whose frequencies change once a sequence is longer than this setting."""

SUPPORTED = ("default", "linear", "llama3", "yarn", *_BY_LENGTH)


def frequencies(config: HfConfig) -> tuple[torch.Tensor, float]:
    """(inverse frequencies, float32[rotated channels / 2]; the factor on cosine and sine)."""
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        return _unscaled(config), 1.0
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return inverse.float(), float(factor)


def _unscaled(config: HfConfig) -> torch.Tensor:
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head_size * (config.rope_parameters.get("partial_rotary_factor") or 1.0))
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device="cpu") / rotated
    return 1.0 / config.rope_parameters["rope_theta"] ** exponents


def violations(config: HfConfig, args: TrainArgs) -> Iterator[Violation]:
    """A type that is not known, or sequences so long that the frequencies would change between them."""
    parameters = config.rope_parameters
    kind = parameters.get("rope_type")
    if kind not in SUPPORTED:
        message = f"this kind of rotary embedding is not supported; supported are {', '.join(SUPPORTED)}"
        yield Violation(path="config.json:rope_parameters.rope_type", value=kind, message=message)
    elif kind in _BY_LENGTH:
        limit = parameters.get(_BY_LENGTH[kind]) or getattr(config, _BY_LENGTH[kind], None)
        longest = derive.max_length(args, config.to_dict())
        if limit and longest and longest > limit:
            message = (
                f"{kind} rotary embedding changes its frequencies beyond {limit} tokens, which training cannot do "
                f"row by row; set max_length to at most {limit}"
            )
            yield Violation(path="spec.args.max_length", value=longest, message=message)
