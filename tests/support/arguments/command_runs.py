"""Which of the reference's commands run here, scaled down, and docs/commands.md, which says so (`--write DATE`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from megatron_trainjob.args.field import Task
from megatron_trainjob.args.parse import Refused, parse
from tests.support.arguments.command_table import COMMANDS, GENERATES, Outcome, counts, outcome
from tests.support.arguments.scaled_runs import MAX_RANKS, SIZES, ScaledRun, scaled, tiny_model_of
from tests.support.models import tiny_model

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"
LETTERS = dict(zip(SIZES, ("TP", "PP", "CP", "EP", "ETP"), strict=True))
HEAD = """# Commands of ms-swift users, one by one

Written on {date} by `python -m tests.support.arguments.command_runs --write {date}`. Each command is
translated by `mtj from-args` and checked by `mtj validate`. *Run* gives the ranks on which it then trained three steps
on the CPU backend (`tests/effects/test_commands_run.py`): with a tiny model of the family and a few rows in place of
the real ones, each parallel size at most 2, at most {ranks} ranks together, and without the arguments that need a GPU
(FP8, offloading, kernels). *Text decoder*: the model takes images; what ran is a text model of its decoder's family,
which shows that the other arguments run.

"""


@dataclass(frozen=True, kw_only=True)
class CommandRun:
    """A command, what validation says of it, the run that it becomes here, and why there is none."""

    outcome: Outcome
    run: ScaledRun | None = None
    is_decoder: bool = False
    reason: str = ""


@cache
def command_runs() -> tuple[CommandRun, ...]:
    """All commands, in their order."""
    return tuple(map(_command_run, COMMANDS))


def distinct(runs: Iterable[CommandRun]) -> dict[str, ScaledRun]:
    """name -> the runs that differ, by the first command of each."""
    found: dict[str, tuple[str, ScaledRun]] = {}
    for each in runs:
        if each.run is not None:
            found.setdefault(each.run.key, (f"{each.outcome.version}-{each.outcome.name}", each.run))
    return dict(found.values())


def page(date: str) -> str:
    """The text of docs/commands.md."""
    runs = command_runs()
    rows = ["| version | accepted | with warnings | refused | run |", "|---|---|---|---|---|"]
    for version, found in counts([each.outcome for each in runs]).items():
        ran = sum(each.run is not None for each in runs if each.outcome.version == version)
        rows.append(f"| {version} | {found['accepted']} | {found['warned']} | {found['refused']} | {ran} |")
    rows += ["", "| version | command | validation | run |", "|---|---|---|---|", *map(_row, runs)]
    return HEAD.format(date=date, ranks=MAX_RANKS) + "\n".join(rows) + "\n"


def _row(each: CommandRun) -> str:
    return f"| {each.outcome.version} | {each.outcome.name} | {each.outcome.verdict} | {_told(each)} |"


def _told(each: CommandRun) -> str:
    if each.run is None:
        return each.reason
    sizes = {letter: each.run.arguments.get(name, 1) for name, letter in LETTERS.items()}
    split = " ".join(f"{letter}{size}" for letter, size in sizes.items() if size > 1)
    ranks = f"{each.run.num_ranks} rank{'s' if each.run.num_ranks > 1 else ''}"
    return f"{'text decoder, ' if each.is_decoder else ''}{ranks}{f', {split}' if split else ''}"


def _command_run(command: dict[str, Any]) -> CommandRun:
    found = outcome(command)
    if command["settings"].get("rlhf_type") in GENERATES:
        return CommandRun(outcome=found, reason="no: generates while training")
    if found.problems:
        return CommandRun(outcome=found, reason=f"no: {found.problems[0].removeprefix('spec.args.').split(';')[0]}")
    if command["command"] == "export":
        return CommandRun(outcome=found, reason="an export: `tests/effects/test_export_effects.py`")
    spec = yaml.safe_load(found.text)["spec"]
    given = spec["args"]
    name = str(given.get("model") or given.get("load"))
    model, is_decoder = tiny_model_of(name)
    if not model:
        reason = f"no: the family of {name.rpartition('/')[2]} is not [supported](families.md)"
        return CommandRun(outcome=found, reason=reason)
    num_ranks = int(spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) * spec["numNodes"]
    run = scaled(cast(Task, command["command"]), given, num_ranks=num_ranks, model=model)
    problem = _problem(run)
    if problem:
        return CommandRun(outcome=found, reason=f"no: {problem.removeprefix('spec.args.').split('; ')[0]}")
    return CommandRun(outcome=found, run=run, is_decoder=is_decoder)


def _problem(run: ScaledRun) -> str:
    """What rules about the model say against the run, as `mtj validate` does where it can read config.json."""
    sources = {"model": "m", "dataset": ["d"]}
    config = tiny_model.raw_config(run.model)
    parsed = parse({**run.arguments, **sources}, task=run.task, world_size=run.num_ranks, hf_config=config)
    return str(parsed.violations[0]) if isinstance(parsed, Refused) else ""


if __name__ == "__main__":
    text = page(sys.argv[-1] if "--write" in sys.argv else "today")
    if "--write" in sys.argv:
        PAGE.write_text(text)
    else:
        sys.stdout.write(text)
