"""A run of four steps with a checkpoint after the second, runs that continue from it, and what they say of a change."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.exit_codes import ExitCode, retry_class
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.resume_ranks import Resumed, resume_rank
from tests.support.ranks.tiny_run import TinyRun, arguments, train, write_data

STEPS, SAVED = 4, 2
LORA = {"train_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A run of four steps with a checkpoint after the second, for others to continue from."""

    given: dict[str, Any]
    run: TinyRun

    def go_on(
        self,
        folder: Path,
        changed: Mapping[str, Any],
        *,
        ranks: int = 1,
        task: str = "sft",
        is_finished: bool = False,
        record: str | None = None,
    ) -> Resumed:
        """A copy of the run in this folder goes on to its end with these arguments changed; None takes one away.

        is_finished: the copy has all its steps already. record: what stands in the args.json of run and checkpoint
        instead.
        """
        save = folder / "run"
        shutil.copytree(self.run.folder, save)
        for path in save.rglob("args.json") if record is not None else ():
            path.write_text(record)
        for iteration in range(STEPS + 1 if is_finished else SAVED + 1, STEPS + 1):
            shutil.rmtree(save / f"iter_{iteration:07d}", ignore_errors=True)
        given = {**self.given, "save": str(save), **changed}
        given = {name: value for name, value in given.items() if value is not None}
        return gloo_ranks(ranks).run(resume_rank, given, task, 1)[0]


def base(model: Path, folder: Path, **given: Any) -> Base:
    """Such a run of this model, with these arguments."""
    data = write_data(folder / "train.jsonl")
    mapping = arguments(model, data, folder / "run", train_iters=STEPS, save_interval=SAVED, min_lr=1e-4, **given)
    run = train(mapping)
    assert (run.exit_code, run.message) == (0, "")
    return Base(given=mapping, run=run)


def assert_logged(found: Resumed, changed: Mapping[str, Any]) -> None:
    """Each change was logged once, with the step from which it holds."""
    for name, value in changed.items():
        value = ARGUMENTS[name].default if value is None else value
        expected = "unset" if value is None else repr(value)
        lines = [line for line in found.warnings if line.startswith(f"from step {SAVED + 1} on: {name} was ")]
        assert len(lines) == 1, name
        assert lines[0].endswith(f", is {expected}")


def assert_refused(base: Base, found: Resumed, changed: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Every change was refused with both values, and nothing of the run before is lost."""
    assert found.run.exit_code == ExitCode.CHECKPOINT_INCOMPATIBLE
    assert retry_class(found.run.exit_code) == "never"
    for name, value in changed.items():
        shown = "unset" if before[name] is None else repr(before[name])
        line = next(line for line in found.run.message.splitlines() if f"spec.args.{name}:" in line)
        assert f"was saved with {shown}, which" in line
        assert line.endswith(f"(got {value!r})")
    assert len(found.run.message.splitlines()) == len(changed)
    assert [path.name for path in found.run.folder.glob("iter_*")] == ["iter_0000002"], "nothing is lost"
    assert found.run.log == base.run.log
