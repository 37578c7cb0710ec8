"""Requests that are refused by themselves, but here ask for just what is done anyway: they count as not given.

So nothing that reads arguments can tell them from a run without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_trainjob.args.field import EVERY_TASK, TRAINING, Task
from megatron_trainjob.args.rules.condition import cel_literal, is_, one_of
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs

ADAPTERS = one_of("train_type", "lora", "lora_llm")
REWARD_MODEL = is_("rlhf_type", "rm")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The argument `name` asks for nothing else wherever `holds`.

    needs: names that must be given too, for a default is no answer to it. cel: the same over spec.args, for an
    argument that the API server would refuse.
    """

    name: str
    holds: Callable[[TrainArgs], bool]
    tasks: tuple[Task, ...] = ("rlhf",)
    needs: tuple[str, ...] = ()
    cel: str = ""


def _same(name: str, other: str) -> str:
    """CEL: both are given, under any of their names, and equal."""
    return f"(({_value(name)}) == ({_value(other)}))"


def _value(name: str) -> str:
    """CEL: the value of a given argument, else its name, which is no value of another one."""
    chain = cel_literal(name)
    for each in reversed((name, *ARGUMENTS[name].aliases)):
        chain = f"has(self.{each}) ? dyn(self.{each}) : dyn({chain})"
    return chain


REQUESTS = (
    Request(
        name="sequence_parallel_size",
        holds=lambda args: args.sequence_parallel_size == args.context_parallel_size,
        tasks=TRAINING,
        cel=_same("sequence_parallel_size", "context_parallel_size"),
    ),
    Request(name="mtp_num_layers", holds=lambda args: args.mtp_num_layers == 0, tasks=EVERY_TASK),
    Request(
        name="ref_load",
        holds=lambda args: args.train_type != "full" and args.ref_load == args.load,
        needs=("load",),
        cel=f"({_same('ref_load', 'load')} && {ADAPTERS.cel()})",
    ),
    Request(
        name="loss_types",
        holds=lambda args: args.loss_types == (args.loss_type,) and not args.loss_weights,
        needs=("loss_type",),
    ),
    Request(
        name="num_labels",
        holds=lambda args: args.rlhf_type == "rm" and args.num_labels == 1,
        cel=f"({REWARD_MODEL.cel()} && {is_('num_labels', 1).cel()})",
    ),
    Request(
        name="task_type",
        holds=lambda args: args.rlhf_type == "rm" and args.task_type == "seq_cls" and args.num_labels in (None, 1),
    ),
    Request(
        name="merge_lora",
        holds=lambda args: not args.merge_lora and not args.mcore_adapters and bool(args.quant_method),
        tasks=("export",),
    ),
)


def names(args: TrainArgs, values: Mapping[str, Any], task: Task) -> frozenset[str]:
    """The given arguments that ask for what is done without them."""
    return frozenset(
        each.name
        for each in REQUESTS
        if task in each.tasks
        and each.name in values
        and values.keys() >= set(each.needs)
        and values[each.name] != ARGUMENTS[each.name].default_for(task)
        and each.holds(args)
    )
