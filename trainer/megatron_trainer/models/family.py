"""What a model family is: how its config.json maps to megatron-core, and how its weights are named and laid
out.

A family is a value. Adding one means adding a record in models/families/ and listing it in
models/__init__.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_trainjob.violation import Violation

HfConfig = Any
"""A transformers configuration object; its fields differ from family to family."""

Rule = Literal["plain", "qkv", "fused_qkv", "gated", "fused_gated", "vocabulary"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One row of a weight table, read in both directions.

    parameter: megatron-core's name in its local layer implementation, with {layer} and {expert} counted
    over the whole model. names: the tensors of the Hugging Face checkpoint that hold it, in the order that
    the rule wants (see convert/rules.py).
    """

    parameter: str
    rule: Rule
    names: tuple[str, ...]


def plain(parameter: str, name: str) -> Weight:
    """One tensor that has the same layout on both sides."""
    return Weight(parameter=parameter, rule="plain", names=(name,))


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family.

    settings: HF config -> the fields of megatron-core's configuration in which the family differs from a
    plain decoder. weights: table rows beyond, or in place of, those of models/weights.py. refuse: what this
    family cannot do, as violations. post_norms: a norm after attention and one after the MLP, each before
    the residual is added. output_bias, mlp_bias: HF config -> whether those linears carry a bias. ignored:
    regular expressions of checkpoint names that the model does not use; copied: of those, the ones that an
    export takes from the source.
    """

    model_type: str
    settings: Callable[[HfConfig], Mapping[str, Any]]
    weights: tuple[Weight, ...] = ()
    latent_attention: bool = False
    post_norms: bool = False
    output_bias: Callable[[HfConfig], bool] = lambda _: False
    mlp_bias: Callable[[HfConfig], bool] = lambda _: False
    refuse: Callable[[HfConfig], tuple[Violation, ...]] = lambda _: ()
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    copied: Callable[[HfConfig], tuple[str, ...]] = lambda _: ()
