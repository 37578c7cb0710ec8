"""A whole training run of a tiny model on gloo ranks: the same code path as a rank of a pod.

`train(...)` is what tests call; `train_rank` is what each worker runs.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from tests.support.ranks.pool import gloo_ranks

QUESTIONS = (
    ("What is two plus two?", "Two plus two is four."),
    ("Name a color.", "Blue."),
    ("Say hello.", "Hello! How can I help you today?"),
    ("What do cows drink?", "Cows drink water."),
    ("Count to three.", "One, two, three."),
    ("Which animal barks?", "The dog barks, and the fox says something else."),
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Is water wet?", "Yes."),
)


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """What a run left: exit code and message (0 and "" when it finished), its folder, and its logging.jsonl."""

    exit_code: int
    message: str
    folder: Path
    log: tuple[dict[str, Any], ...]
    output: str = ""

    def column(self, name: str) -> list[float]:
        """The values of one key over the lines that have it, in order."""
        return [line[name] for line in self.log if name in line]

    def weights(self) -> dict[str, Any]:
        """The exported model's tensors, of all files: a pipeline stage writes its own (needs to_hf)."""
        from safetensors.torch import load_file

        files = sorted((self.folder / "hf").glob("model*.safetensors"))
        assert files, f"{self.folder / 'hf'} has no weights"
        return {name: tensor for path in files for name, tensor in load_file(path).items()}


def write_data(path: Path, *, rows: int = 18) -> Path:
    """A JSON lines file of small conversations, the same for the same number of rows."""
    lines = []
    for index in range(rows):
        question, answer = QUESTIONS[index % len(QUESTIONS)]
        turns = [{"role": "user", "content": f"{question} ({index})"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def arguments(model: Path, data: Path, save: Path, **given: object) -> dict[str, object]:
    """Arguments of a short run in float32; `given` adds to them or replaces them, None removes one."""
    merged = {
        "model": str(model),
        "dataset": [str(data)],
        "save": str(save),
        "add_version": False,
        "torch_dtype": "float32",
        "train_iters": 4,
        "micro_batch_size": 1,
        "global_batch_size": 4,
        "lr": 1e-3,
        "log_interval": 1,
        "num_workers": 0,
        "max_length": 128,
        **given,
    }
    return {name: value for name, value in merged.items() if value is not None}


def train(
    mapping: Mapping[str, object], *, ranks: int = 1, task: str = "sft", stop_at: int | None = None, **env: object
) -> TinyRun:
    """Trains and returns what the first rank left. stop_at: asks to stop while this step runs, as SIGTERM would.

    env: fields of Environment (resume, attempt, save_on_termination ...).
    """
    return gloo_ranks(ranks).run(train_rank, dict(mapping), task, stop_at, env)[0]


def train_one_asked(mapping: Mapping[str, object], *, ranks: int, asked: int, stop_at: int) -> list[TinyRun]:
    """What each rank left of a run of which one rank alone is asked to stop, as when one node is drained."""
    return gloo_ranks(ranks).run(_rank_one_asked, dict(mapping), asked, stop_at)


def _rank_one_asked(mapping: dict[str, object], asked: int, stop_at: int) -> TinyRun:
    import torch.distributed as dist

    return train_rank(mapping, "sft", stop_at if dist.get_rank() == asked else None, {})


def run_program(mapping: Mapping[str, object], *, task: str = "sft") -> TinyRun:
    """Trains on one rank through the program's own entry, `run.main`; `output` is what it printed."""
    return gloo_ranks(1).run(main_rank, dict(mapping), task)[0]


def main_rank(mapping: dict[str, object], task: str) -> TinyRun:
    """What a rank's process does, with its command line, its log and its exit code."""
    import contextlib
    import io

    from megatron_trainer.process import run

    flags = [part for name, value in mapping.items() for part in (f"--{name}", *_words(value))]
    with contextlib.redirect_stderr(io.StringIO()) as printed, contextlib.redirect_stdout(printed):
        exit_code = run.main([task, *flags])
        run.setup_logging(run.environment.read(), logging.WARNING)
    left = read_run(Path(str(mapping["save"])), exit_code=exit_code)
    return replace(left, output=printed.getvalue())


def main_rank_on_full_disk(mapping: dict[str, object], folder: Path) -> TinyRun:
    """`main_rank` where the folder in which a rank leaves a record of its failure has no room."""
    import os
    from unittest import mock

    from megatron_trainjob.environment import FAILURE_FILE

    for name in ("rank.json", "rank.stack"):
        (folder / name).symlink_to("/dev/full")
    with mock.patch.dict(os.environ, {FAILURE_FILE: str(folder / "rank.json")}):
        return main_rank(mapping, "sft")


def _words(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]


def train_rank(
    mapping: dict[str, object], task: str, stop_at: int | None, env: dict[str, Any], termination: Any = None
) -> TinyRun:
    """One rank's part of `train`; failures that carry an exit code are an answer, others a bug that is raised."""
    import torch.distributed as dist

    from megatron_trainer.environment import Environment
    from megatron_trainer.failure import InvalidInput, TrainingError
    from megatron_trainer.process import recorded_arguments, run
    from megatron_trainjob.args.parse import Accepted, Refused, parse

    exit_code, message = 0, ""
    try:
        parsed = parse(mapping, task=task)  # type: ignore[arg-type]
        if isinstance(parsed, Accepted):
            parsed = recorded_arguments.complete(parsed, task, world_size=dist.get_world_size())
        if isinstance(parsed, Refused):
            raise InvalidInput(parsed.violations)
        place = {"rank": dist.get_rank(), "world_size": dist.get_world_size(), "device": "cpu"}
        run.train(parsed, task, Environment(**{**place, **env}), termination or _termination(stop_at))
    except TrainingError as error:
        exit_code, message = int(error.exit_code), str(error)
    return read_run(Path(str(mapping["save"])), exit_code=exit_code, message=message)


def train_on_late_data(mapping: dict[str, object], wait_s: float) -> TinyRun:
    """`train_rank` where each global batch comes this much later."""
    from unittest import mock

    from megatron_trainer.train.feed import Feed

    on_time = Feed.global_batches

    def late(self: Any, *given: Any) -> Any:
        for batches in on_time(self, *given):
            time.sleep(wait_s)
            yield batches

    with mock.patch.object(Feed, "global_batches", late):
        return train_rank(mapping, "sft", None, {})


def train_with_spoiled_gradient(mapping: dict[str, object], step: int) -> TinyRun:
    """`train_rank` where one number of the gradient of this step is not a number, though the loss is one."""
    from unittest import mock

    from megatron_trainer.engine import Engine

    update, updates = Engine.update, count(1)

    def spoiled(engine: Engine) -> Any:
        if next(updates) == step:
            next(p for p in engine.models[0].parameters() if p.requires_grad).main_grad.view(-1)[0] = float("nan")
        return update(engine)

    with mock.patch.object(Engine, "update", spoiled):
        return train_rank(mapping, "sft", None, {})


def train_counting_batches(mapping: dict[str, object]) -> int:
    """The largest number of micro-batches of an evaluation that were there at once."""
    import gc
    import weakref
    from unittest import mock

    from megatron_trainer.train.feed import EvaluationFeed

    in_order, most = EvaluationFeed.global_batches, 0

    def counted(self: Any, *given: Any) -> Any:
        nonlocal most
        made: list[weakref.ref[Any]] = []
        for batches in in_order(self, *given):
            made.extend(map(weakref.ref, batches))
            gc.collect()
            most = max(most, sum(one() is not None for one in made))
            yield batches

    with mock.patch.object(EvaluationFeed, "global_batches", counted):
        train_rank(mapping, "sft", None, {})
    return most


def train_stopped_in_evaluation(mapping: dict[str, object], iteration: int, asked: int) -> tuple[TinyRun, int]:
    """`train_rank` where one rank is asked to stop in the evaluation of a step; and how many rounds that reads."""
    from unittest import mock

    import torch.distributed as dist

    from megatron_trainer.termination import Termination
    from megatron_trainer.train.feed import EvaluationFeed

    in_order, termination, rounds = EvaluationFeed.global_batches, Termination(), 0

    def asking(self: Any, *given: Any) -> Any:
        nonlocal rounds
        for number, batches in enumerate(in_order(self, *given), start=1):
            if termination.iteration == iteration:
                rounds += 1
                if number == 2 and dist.get_rank() == asked:
                    termination._request(signal.SIGTERM, None)
            yield batches

    with mock.patch.object(EvaluationFeed, "global_batches", asking):
        return train_rank(mapping, "sft", None, {}, termination), rounds


def train_stopped_in_save(mapping: dict[str, object], iteration: int, asked: int) -> TinyRun:
    """`train_rank` where one rank is asked to stop while the checkpoint of a step is saved."""
    from unittest import mock

    import torch.distributed as dist

    from megatron_trainer.checkpoint.save import Saver
    from megatron_trainer.termination import Termination

    start, termination = Saver.start, Termination()

    def asking(self: Saver, state: Any, loss: float | None) -> None:
        if state.iteration == iteration and dist.get_rank() == asked:
            termination._request(signal.SIGTERM, None)
        start(self, state, loss)

    with mock.patch.object(Saver, "start", asking):
        return train_rank(mapping, "sft", None, {}, termination)


def read_run(folder: Path, *, exit_code: int = 0, message: str = "") -> TinyRun:
    """Reads what a run left in its folder; an empty log when it never got so far."""
    path = folder / "logging.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return TinyRun(exit_code=exit_code, message=message, folder=folder, log=tuple(json.loads(line) for line in lines))


def _termination(stop_at: int | None) -> Any:
    from megatron_trainer.termination import Termination

    class StopAt(Termination):
        """Asks to stop while step `stop_at` runs: the loop has noted the step before it."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            is_training = name in ("iteration", "_waits_for_step") and self.__dict__.get("_waits_for_step")
            if is_training and self.iteration + 1 == stop_at:
                self._request(signal.SIGTERM, None)

    return Termination() if stop_at is None else StopAt()
