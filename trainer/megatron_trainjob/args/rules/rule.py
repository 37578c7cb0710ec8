"""The definition of a rule and the facts it may read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_trainjob.args.field import EVERY_TASK, TRAINING, Task
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Severity


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The input of rules: arguments, which of them the user set, known facts about cluster and model."""

    args: TrainArgs
    given: frozenset[str]
    task: Task
    world_size: int | None = None
    hf_config: Mapping[str, Any] | None = None

    @property
    def ranks(self) -> int:
        """The number of ranks, only for rules with needs_world_size. Raises LookupError if unknown."""
        if self.world_size is None:
            raise LookupError("the number of ranks is unknown")
        return self.world_size

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json, only for rules with needs_model. Raises LookupError if unknown."""
        if self.hf_config is None:
            raise LookupError("the model's config.json is unknown")
        return self.hf_config


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One constraint. `broken(facts)` returns the problem and the remedy, or "" if the constraint holds.

    `about` names the arguments it reads, the one to report first; it is skipped if one of them is malformed. `cel` is
    the same constraint in CEL over spec.args with its message, "" if CEL cannot express it. A broken rule of severity
    "warning" means that the reported argument has no effect.
    """

    name: str
    about: tuple[str, ...]
    broken: Callable[[Facts], str]
    tasks: tuple[Task, ...] = EVERY_TASK
    needs_world_size: bool = False
    needs_model: bool = False
    cel: str = ""
    cel_message: str = ""
    severity: Severity = "error"


def rule(
    *about: str,
    tasks: tuple[Task, ...] = TRAINING,
    needs_world_size: bool = False,
    needs_model: bool = False,
    cel: str = "",
    cel_message: str = "",
    severity: Severity = "error",
) -> Callable[[Callable[[Facts], str]], Rule]:
    """Turns a function into a Rule; the function's name states the constraint."""

    def make(function: Callable[[Facts], str]) -> Rule:
        return Rule(
            name=function.__name__,
            about=about,
            broken=function,
            tasks=tasks,
            needs_world_size=needs_world_size,
            needs_model=needs_model,
            cel=cel,
            cel_message=cel_message,
            severity=severity,
        )

    return make
