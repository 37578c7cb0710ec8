"""Pairs each parameter of a built model with its rule and its names in the Hugging Face checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_trainer.convert.rules import Share, Sizes
from megatron_trainer.lora.names import (
    TIED_OUTPUT,
    WORD_EMBEDDINGS,
    canonical,
    named_weights,
    unwrapped,
    whole_model_name,
)
from megatron_trainer.megatron.marks import split_dim
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.families.vision import is_tower
from megatron_trainjob.families.weight import Rule
from megatron_trainjob.families.weights import at, copies, names_of, table

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter of this rank. name: megatron-core's, with layers numbered over the whole model. names: of the
    checkpoint.

    is_copy: a replica of a tensor of another entry of the model (tied embeddings over stages, and the embedding that
    multi-token prediction needs on the last stage). copies: further names under which a checkpoint holds its tensor.
    """

    parameter: Tensor
    name: str
    rule: Rule
    names: tuple[str, ...]
    is_expert: bool
    is_copy: bool
    copies: tuple[str, ...] = ()

    @property
    def dim(self) -> int | None:
        """Dimension along which tensor-parallel ranks share the parameter, None when each holds all of it."""
        return split_dim(self.parameter)

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks that share it."""
        group: dist.ProcessGroup = (
            parallel_state.get_expert_tensor_parallel_group()
            if self.is_expert
            else parallel_state.get_tensor_model_parallel_group()
        )
        return group

    @property
    def share(self) -> Share:
        """This rank's part."""
        return Share(rank=self.group.rank(), size=self.group.size(), dim=self.dim)


def sizes(spec: ModelSpec) -> Sizes:
    """The sizes of the model that the rules need."""
    linear = spec.model.linear
    wide = spec.model.wide.num_kv_heads if spec.model.wide else 1
    return Sizes(
        groups=spec.model.num_kv_heads,
        queries_per_group=spec.model.num_heads // spec.model.num_kv_heads,
        vocab_size=spec.vocab_size,
        padded_vocab_size=spec.padded_vocab_size,
        channels=(linear.key_width, linear.key_width, linear.value_width) if linear else (),
        key_heads=linear.key_heads if linear else 1,
        wide_groups=wide,
        wide_queries=spec.model.num_heads // wide,
    )


def entries(chunks: Sequence[torch.nn.Module], spec: ModelSpec) -> Iterator[Entry]:
    """Every weight of this rank in model order, wrapped or not; adapter weights are skipped.

    Raises:
        KeyError: a parameter is not in the family's weight table; the table is incomplete.
    """
    rows, further = table(spec.model.family, has_scores=spec.head is not None), copies(spec.model)
    for chunk in map(unwrapped, chunks):
        for local_name, parameter in named_weights(chunk):
            name = whole_model_name(chunk, canonical(local_name))
            if is_tower(name):
                yield _of_tower(parameter, name)
                continue
            layer, expert = _LAYER.match(name), _EXPERT.search(name)
            row = rows.get(_pattern(name))
            if row is None:
                raise KeyError(f"the weight table of {spec.model.family} has no row for {name}")
            row = at(row, spec.model, int(layer[1])) if layer else row
            names = names_of(row, spec.model, layer=layer and layer[1], expert=expert and expert[1])
            yield Entry(
                parameter=parameter,
                name=name,
                rule=row.rule,
                names=names,
                is_expert=expert is not None,
                is_copy=_is_copy(chunk, local_name, spec),
                copies=further.get(names[0], ()),
            )


def _is_copy(chunk: GPTModel, local_name: str, spec: ModelSpec) -> bool:
    return (spec.tied and local_name == TIED_OUTPUT) or (local_name == WORD_EMBEDDINGS and not chunk.pre_process)


def _of_tower(parameter: Tensor, name: str) -> Entry:
    """A parameter of the vision tower: transformers' own module has the checkpoint's names."""
    return Entry(parameter=parameter, name=name, rule="plain", names=(name,), is_expert=False, is_copy=False)


def _pattern(name: str) -> str:
    """The name with its numbers replaced by placeholders, as in weight tables."""
    return _EXPERT.sub(".local_experts.{expert}.", _LAYER.sub("decoder.layers.{layer}.", name))
