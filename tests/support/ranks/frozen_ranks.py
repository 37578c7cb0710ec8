"""Two ranks that save with the real Saver again and again, of which one is frozen before each step of a save in turn.

Each save goes to a folder of its own, `{step}` below the given one. Files beside it tell
the process that watches: `{step}.pid` of the rank that will be frozen, and `{step}.json` once the save has ended.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.checkpoint.frozen_writer import Freezer, owner, save

MOST_STEPS = 120
OLD = b"of the old attempt"
_freezer: Freezer | None = None


def save_again_and_again(mapping: dict[str, object], folder: str, frozen_rank: int) -> int:
    """Saves iteration 8 beside 4 and 6 until a save has fewer steps than the one to be frozen at; how many it has."""
    import torch.distributed as dist

    from megatron_trainer.environment import Environment
    from megatron_trainer.termination import Termination
    from megatron_trainer.train import setup
    from megatron_trainjob.args.parse import Refused, parse

    global _freezer
    _freezer = _freezer or Freezer()
    parsed = parse(mapping, task="sft")
    assert not isinstance(parsed, Refused)
    env = Environment(rank=dist.get_rank(), world_size=dist.get_world_size(), device="cpu")
    backend = setup.start_process(env, parsed.args)
    run, state = setup.build(parsed, "sft", env, backend, Termination())
    for step in range(MOST_STEPS):
        place = Path(folder) / f"{step}"
        if dist.get_rank() == 0:
            _prepare(place)
        dist.barrier()
        num_changes = _save_once(run, replace(state, iteration=8), place, step, is_frozen=env.rank == frozen_rank)
        seen = [0, 0]
        dist.all_gather_object(seen, num_changes)
        if seen[frozen_rank] <= step:
            return step
    raise AssertionError("a save has no end")


def _prepare(place: Path) -> None:
    from megatron_trainer.checkpoint import folder

    place.mkdir()
    assert folder.claim(place, owner(0))
    for iteration in (4, 6):
        save(place, 0, iteration, OLD)


def _save_once(run: Any, state: Any, place: Path, step: int, *, is_frozen: bool) -> int:
    """One save; how many changes this rank made. A failure is told in the file."""
    import torch.distributed as dist

    from megatron_trainer.checkpoint.save import Saver
    from megatron_trainer.failure import TrainingError

    assert _freezer
    policy = replace(run.saver.policy, save=place, owner=owner(0), limit=2)
    saver = Saver(run.engine, run.backend, policy)
    if is_frozen:
        place.with_suffix(".part").write_text(str(os.getpid()))
        place.with_suffix(".part").rename(place.with_suffix(".pid"))
    message = ""
    _freezer.arm(step if is_frozen else -1)
    try:
        saver.start(state, None)
        saver.finish()
    except TrainingError as err:
        message = str(err)
    num_changes = _freezer.seen
    _freezer.arm(-1)
    dist.barrier()
    if is_frozen:
        place.with_suffix(".part").write_text(json.dumps(message))
        place.with_suffix(".part").rename(place.with_suffix(".json"))
    return num_changes


def export_taken_over(folder: str) -> str:
    """Exports into a folder that a successor takes over, and exports into, in the middle; how it ended."""
    from megatron_trainer.checkpoint import folder as run_folder
    from megatron_trainer.convert.publish import publish
    from megatron_trainer.failure import TrainingError

    save_folder = Path(folder)
    assert run_folder.claim(save_folder, owner(0))

    def write(aside: Path) -> None:
        (aside / "config.json").write_text("old")

    def lose(aside: Path) -> None:
        assert run_folder.claim(save_folder, owner(1))
        (save_folder / "hf").mkdir()
        (save_folder / "hf" / "config.json").write_text("new")
        aside.mkdir(parents=True)  # as libraries do that write a tokenizer
        (aside / "tokenizer.json").write_text("old")

    try:
        publish(save_folder / "hf", [write, lose], door=run_folder.door(save_folder, owner(0)))
    except TrainingError as err:
        return str(err)
    return ""
