"""Which of the reference's commands run here, scaled down: docs/commands.md and its counts in README.md.

`python -m tests.support.arguments.command_runs --write DATE` writes both.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from megatron_trainjob.args.field import Task
from megatron_trainjob.args.parse import Refused, parse
from tests.support.arguments.command_table import COMMANDS, GENERATES, Outcome, outcome, read_yaml
from tests.support.arguments.scaled_runs import MAX_RANKS, SIZES, ScaledRun, scaled, tiny_models_of
from tests.support.models import tiny_model

ROOT = Path(__file__).parents[3]
PAGE, README = ROOT / "docs" / "commands.md", ROOT / "README.md"
_COUNTED = re.compile(r"(<!-- counted commands -->\n).*?(<!-- end -->)", re.DOTALL)
_ROW = re.compile(r"^\| (3\.8|3\.9|4\.x) \| (\S+) \| (accepted|warned|refused) \| (.+) \|$", re.MULTILINE)
LETTERS = dict(zip(SIZES, ("TP", "PP", "CP", "EP", "ETP"), strict=True))
HEAD = """# Commands of ms-swift users, one by one

Written on {date} by `python -m tests.support.arguments.command_runs --write {date}`. Each command is
translated by `mtj from-args` and checked by `mtj validate`. *Run* gives the ranks on which it then trained three steps
on the CPU backend (`tests/effects/test_commands_run.py`): with a tiny model of the family and a few rows in place of
the real ones, each parallel size at most 2, at most {ranks} ranks together, and without the arguments that need a GPU
(FP8, offloading, kernels). Models with images ran with their vision tower on rows with pictures. *Text decoder*: the
model takes images, and is not trained with them here or not for this task; what ran is a text model of its decoder's
family, which shows that the other arguments run.

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
    rows = [_row(each) for each in command_runs()]
    table = ["| version | command | validation | run |", "|---|---|---|---|", *rows]
    head = HEAD.format(date=date, ranks=MAX_RANKS)
    return head + "\n".join([*_count_table("\n".join(rows), with_runs=True), "", *table]) + "\n"


def page_rows(text: str) -> list[tuple[str, str, str, str]]:
    """(version, command, verdict, run) of each command of docs/commands.md."""
    return _ROW.findall(text)


def readme(text: str, page_text: str) -> str:
    """README.md with what this text of docs/commands.md counts."""
    rows = page_rows(page_text)
    num_run = sum(_has_run(run) for *_, run in rows)
    counted = (
        f"The tests take {len(rows)} commands of versions 3.8, 3.9 and 4.x through it and through `mtj validate`; "
        f"{num_run} of them train three\nsteps with tiny models on up to {MAX_RANKS} CPU ranks "
        "([one by one](docs/commands.md)):\n\n" + "\n".join(_count_table(page_text, with_runs=False)) + "\n"
    )
    return _COUNTED.sub(lambda found: f"{found[1]}{counted}{found[2]}", text)


def _count_table(page_text: str, *, with_runs: bool) -> list[str]:
    end, line = (" run |", "---|") if with_runs else ("", "")
    table = [f"| version | accepted | with warnings | refused |{end}", f"|---|---|---|---|{line}"]
    rows = page_rows(page_text)
    for version in dict.fromkeys(row[0] for row in rows):
        of_version = [row for row in rows if row[0] == version]
        verdicts = Counter(verdict for _, _, verdict, _ in of_version)
        numbers = [verdicts[name] for name in ("accepted", "warned", "refused")]
        numbers += [sum(_has_run(run) for *_, run in of_version)] if with_runs else []
        table.append(f"| {version} | {' | '.join(map(str, numbers))} |")
    return table


def _has_run(run: str) -> bool:
    return not run.startswith(("no: ", "an export"))


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
    spec = read_yaml(found.text)["spec"]
    given = spec["args"]
    name = str(given.get("model") or given.get("load"))
    models = tiny_models_of(name)
    if not models:
        reason = f"no: the family of {name.rpartition('/')[2]} is not [supported](families.md)"
        return CommandRun(outcome=found, reason=reason)
    num_ranks = int(spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) * spec["numNodes"]
    task = cast(Task, command["command"])
    runs = {model: scaled(task, given, num_ranks=num_ranks, model=model) for model in models}
    problems = {model: _problem(run) for model, run in runs.items()}
    model = next((model for model, problem in problems.items() if not problem), None)
    if model is None:
        problem = next(iter(problems.values()))
        return CommandRun(outcome=found, reason=f"no: {problem.removeprefix('spec.args.').split('; ')[0]}")
    return CommandRun(outcome=found, run=runs[model], is_decoder=models[model])


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
        README.write_text(readme(README.read_text(), text))
    else:
        sys.stdout.write(text)
