"""Ranks that stay up, one a card (or a gloo process on the CPU), for many small trainings one after the other.

A training takes as many cards as it has ranks; trainings on different cards run side by side. Cards of one that failed
get new processes: a rank may still wait in a collective.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megatron_trainer import environment
from tests.support.ranks import pool, tiny_run
from tests.support.ranks.tiny_run import TinyRun

GRACE_S = 5.0
"""How long the other ranks of a failed training may take to say what they saw."""


class TrainingFailed(Exception):
    """A rank raised, died or did not end in time; the message says which, and why."""


@dataclass(frozen=True)
class Rank:
    """One process and the line to it."""

    process: Any
    connection: Connection


@dataclass(kw_only=True)
class Cards:
    """All cards of this machine, or as many processes on its CPU. Different threads may use different cards."""

    folder: Path
    count: int
    is_cpu: bool
    ranks: dict[int, Rank] = field(default_factory=dict)
    starts: threading.Lock = field(default_factory=threading.Lock)
    """A process takes over the environment of this one, which is changed for it meanwhile."""

    def train(
        self, cards: Sequence[int], arguments: Mapping[str, object], *, limit_s: float, stop_at: int | None = None
    ) -> TinyRun:
        """A training with one rank on each of these cards; continues from the save folder if it has a checkpoint.

        Raises TrainingFailed.
        """
        for card in cards:
            if card not in self.ranks:
                self.ranks[card] = self._start(card)
        store = self.folder / f"store-{cards[0]}-{time.monotonic_ns()}"
        env = {"resume": "IfPresent", "device": "cpu" if self.is_cpu else None}
        for rank, card in enumerate(cards):
            call = (train_rank, (card, dict(arguments), stop_at, env), {}, rank, len(cards), str(store), limit_s)
            self.ranks[card].connection.send_bytes(pickle.dumps(call))
        answers = self._answers(cards, limit_s)
        problems = [f"rank {rank}: {text}" for rank, (kind, text) in sorted(answers.items()) if kind == "failure"]
        if not problems and len(answers) < len(cards):
            late = [rank for rank in range(len(cards)) if rank not in answers]
            problems = [f"ranks {late} did not end within {limit_s:.0f} s"]
        if problems:
            self.end(cards)
            raise TrainingFailed(problems[0].strip().splitlines()[-1])
        store.unlink(missing_ok=True)
        return answers[0][1]

    def _start(self, card: int) -> Rank:
        context = pool.forks() if self.is_cpu else multiprocessing.get_context("spawn")
        env = environment.Environment(device="cpu" if self.is_cpu else None)
        variables = {
            **environment.for_rank(env, card, self.count),
            "NVIDIA_TF32_OVERRIDE": "0",
            "HF_HUB_OFFLINE": "1",
            **({"MTJ_DEVICE": "cpu", "OMP_NUM_THREADS": "1"} if self.is_cpu else {}),
        }
        ours, theirs = multiprocessing.Pipe()
        process = context.Process(target=serve, args=(theirs, card, self.folder / f"card-{card}.log"), daemon=True)
        with self.starts, patch.dict(os.environ, variables):
            process.start()
        theirs.close()
        return Rank(process, ours)

    def _answers(self, cards: Sequence[int], limit_s: float) -> dict[int, tuple[str, Any]]:
        """By rank; that of a rank that did not answer in time is missing."""
        rank_of = {self.ranks[card].connection: rank for rank, card in enumerate(cards)}
        found: dict[int, tuple[str, Any]] = {}
        deadline = time.monotonic() + limit_s
        while waiting := [line for line, rank in rank_of.items() if rank not in found]:
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for line in ready:
                found[rank_of[line]] = _received(line)
            if any(kind == "failure" for kind, _ in found.values()):
                deadline = min(deadline, time.monotonic() + GRACE_S)
        return found

    def end(self, cards: Sequence[int]) -> None:
        """Kills the processes of these cards; the next training starts new ones."""
        for card in cards:
            rank = self.ranks.pop(card, None)
            if rank is not None:
                rank.process.kill()
                rank.process.join()
                rank.connection.close()


def _received(line: Any) -> tuple[str, Any]:
    try:
        return pickle.loads(line.recv_bytes())
    except (EOFError, OSError):
        return "failure", "the process died; its log is in the folder of this run"


def serve(connection: Connection, card: int, log: Path) -> None:
    """The life of a card's process: one training after the other until the line is closed."""
    pool.write_to(log)
    from megatron_trainer import backend as backends

    backend = backends.select()
    backend.install()
    backend.bind(card)
    while True:
        try:
            call = pickle.loads(connection.recv_bytes())
        except EOFError:
            os._exit(0)
        connection.send_bytes(pickle.dumps(pool.answer(backend, *call)))


def train_rank(card: int, arguments: dict[str, object], stop_at: int | None, env: dict[str, Any]) -> TinyRun:
    """One rank's part of `Cards.train`. Raises what the trainer says where it refuses or fails."""
    if not env["device"]:
        _forget_the_last_training()
    run = tiny_run.train_rank(arguments, "sft", stop_at, {"local_rank": card, **env})
    if run.exit_code != 0 and stop_at is None:
        raise TrainingFailed(f"exit code {run.exit_code}: {run.message}")
    return run


def _forget_the_last_training() -> None:
    """TransformerEngine chooses its attention again, and the memory of the last training is free."""
    import torch

    from tests.support.ranks.gpu_training import forget_attention_kernels

    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        os.environ.pop(name, None)
    forget_attention_kernels()
    torch.cuda.empty_cache()
