"""A valid run of each task, and values of every argument that somebody may write instead of the default."""

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_trainjob.args.field import Argument, TrainingTask
from megatron_trainjob.args.tree import ARGUMENTS

RUN = {"model": "/m", "dataset": ["/d"], "max_epochs": 1}
RUNS: Mapping[TrainingTask, Mapping[str, Any]] = {"pt": RUN, "sft": RUN, "rlhf": {**RUN, "rlhf_type": "dpo"}}
PLAIN: Mapping[str, list[Any]] = {
    "str": ["/some/x"],
    "json": [{"a": "b"}],
    "str|json": [{"a": "b"}],
    "list[str]": [["a", "b"]],
    "list[int]": [[2, 1]],
    "list[float]": [[0.5, 0.5]],
}


def typical(argument: Argument) -> list[Any]:
    """Values other than the default that the argument's own type, choices and range allow."""
    if argument.choices is not None:
        others = [c for c in argument.choices if c != argument.default and c not in argument.refused_choices]
        return [[other] for other in others[:2]] if argument.is_list else others[:3]
    if argument.type == "bool":
        return [not argument.default]
    if argument.type in ("int", "float"):
        tried = (2, 4, 1, 3) if argument.type == "int" else (0.5, 0.1, 2.0, 1.0)
        return [value for value in tried if value != argument.default and _is_within(argument, value)][:2]
    return PLAIN[argument.type]


def _is_within(argument: Argument, value: float) -> bool:
    above = (argument.ge is None or value >= argument.ge) and (argument.gt is None or value > argument.gt)
    return above and (argument.le is None or value <= argument.le) and (argument.lt is None or value < argument.lt)


def pairs(task: TrainingTask, *, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """The run with two arguments of the task, a sample of all pairs that the seed decides."""
    values = {name: typical(arg) for name, arg in ARGUMENTS.items() if task in arg.applies_to}
    choice = random.Random(seed)
    all_pairs = list(itertools.combinations([name for name in values if values[name]], 2))
    for pair in choice.sample(all_pairs, count):
        yield {**RUNS[task], **{name: choice.choice(values[name]) for name in pair}}
