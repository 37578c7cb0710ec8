"""Checkpoints that are damaged, and processes that are killed while they save: is what is loaded ever wrong?

    python -m tests.support.checkpoint.checkpoint_damage --cases 300 --seed 0 --arguments run.json

A case is a seed. The even ones harm files of three real checkpoints at random and resume; the odd ones kill a
process with SIGKILL at a random moment of saving, publishing and pruning, one save after the other, and resume from
what it left. Right is: the newest checkpoint that no one harmed, bit for bit, or an error that names a harmed file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ITERATIONS = (1, 2, 3)
LONGEST_LIFE_S = 1.0
KINDS = ("truncated", "emptied", "one bit flipped", "a block overwritten", "deleted", "made longer")


@dataclass(frozen=True)
class Bench:
    """A built run whose state can be set, saved and read back. Holds live Megatron objects of this process."""

    args: Any
    engine: Any
    backend: Any
    policy: Any

    def set_to(self, iteration: int) -> None:
        """Weights and optimizer state that belong to this iteration alone."""
        import torch

        generator = torch.Generator().manual_seed(iteration)
        for tensor in self._tensors():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator))

    def digest(self) -> str:
        """Of all weights and moments."""
        parts = hashlib.sha256()
        for tensor in self._tensors():
            parts.update(tensor.detach().contiguous().numpy().tobytes())
        return parts.hexdigest()

    def saver(self, save: Path, *, in_background: bool) -> Any:
        from megatron_trainer.checkpoint.folder import claim
        from megatron_trainer.checkpoint.save import Saver

        policy = replace(self.policy, save=save, in_background=in_background, limit=2)
        assert claim(save, policy.owner)
        return Saver(self.engine, self.backend, policy)

    def resumed(self, save: Path) -> tuple[int, str] | str | None:
        """(iteration, digest) of what is resumed from, or the error's message, or None where there is nothing."""
        from megatron_trainer.checkpoint import load
        from megatron_trainer.failure import TrainingError

        self.set_to(0)
        policy = load.LoadPolicy(layout=self.policy.layout, with_optimizer=True, with_rng=True)
        try:
            found = load.find(save)
            if found is None:
                return None
            return load.resume(self.engine, found, self.backend, policy).iteration, self.digest()
        except TrainingError as error:
            return str(error)

    def _tensors(self) -> Iterator[Any]:
        from megatron_trainer.megatron.patches.optimizer_state import create_adam_state

        torch_optimizer = self.engine.optimizer.chained_optimizers[0].optimizer
        create_adam_state(torch_optimizer)
        for model in self.engine.models:
            yield from model.parameters()
        for group in torch_optimizer.param_groups:
            for parameter in group["params"]:
                yield torch_optimizer.state[parameter]["exp_avg"]
                yield torch_optimizer.state[parameter]["exp_avg_sq"]


def build(mapping: dict[str, object], save: Path) -> Bench:
    """What this rank of a run saves and how, from its arguments; the process group is there already."""
    from megatron_trainer import parallel
    from megatron_trainer.checkpoint.folder import Owner
    from megatron_trainer.checkpoint.save import SavePolicy
    from megatron_trainer.environment import Environment
    from megatron_trainer.models.spec import read_model
    from megatron_trainer.train import setup
    from megatron_trainjob.args.parse import parse

    args = parse(mapping, task="sft").args
    assert args is not None
    backend = setup.start_process(Environment(device="cpu"), args)
    engine = setup.build_engine(args, read_model(args.model, args), backend)
    policy = SavePolicy(
        save=save,
        layout=parallel.layout(),
        train_type="full",
        with_optimizer=True,
        with_rng=True,
        owner=Owner(job_uid="", attempt=0),
        in_background=False,
        on_termination=True,
        limit=None,
        record="{}",
    )
    return Bench(args, engine, backend, policy)


def save_one(bench: Bench, saver: Any, iteration: int) -> None:
    from megatron_trainer.state import TrainState

    bench.set_to(iteration)
    saver.start(TrainState(iteration=iteration, consumed_samples=iteration), None)


def damage_cases(mapping: dict[str, object], folder: Path, seeds: list[int]) -> list[str]:
    """Runs these cases on one rank; what went wrong in any of them."""
    bench = build(mapping, folder)
    whole = folder / "whole"
    saver = bench.saver(whole, in_background=False)
    saver.policy = replace(saver.policy, limit=None)
    digests = {}
    for iteration in ITERATIONS:
        save_one(bench, saver, iteration)
        saver.finish()
        digests[iteration] = bench.digest()
    assert bench.resumed(whole) == (3, digests[3])
    return [found for seed in seeds if (found := _damage_case(bench, whole, digests, seed))]


def _damage_case(bench: Bench, whole: Path, digests: dict[int, str], seed: int) -> str | None:
    chance = random.Random(seed)
    case = whole.with_name(f"case-{seed}")
    shutil.copytree(whole, case)
    harmed: dict[int, list[str]] = {}
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        iteration = chance.choice((3, 3, 2, 1))
        path = chance.choice(sorted((case / f"iter_{iteration:07d}").iterdir()))
        if harm(path, chance.choice(KINDS), chance):
            harmed.setdefault(iteration, []).append(str(path))
    result = bench.resumed(case)
    left = [iteration for iteration in ITERATIONS if iteration not in harmed]
    shutil.rmtree(case)
    if left:
        right = result == (max(left), digests[max(left)])
    else:
        right = isinstance(result, str) and any(path in result for paths in harmed.values() for path in paths)
    return None if right else f"seed {seed}: harmed {harmed}, got {result}"


def harm(path: Path, kind: str, chance: random.Random) -> bool:
    """Damages the file; False when that left it as it was."""
    if not path.exists():
        return False
    before = content = path.read_bytes()
    at = chance.randrange(max(1, len(content)))
    if kind == "truncated":
        content = content[:at]
    elif kind == "emptied":
        content = b""
    elif kind == "one bit flipped" and content:
        content = content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    elif kind == "a block overwritten":
        content = (content[:at] + bytes(4096) + content[at + 4096 :])[: max(len(content), at)]
    elif kind == "made longer":
        content += b"\0"
    if kind == "deleted":
        path.unlink()
    else:
        path.write_bytes(content)
    return kind == "deleted" or content != before


def kill_cases(mapping: dict[str, object], folder: Path, seeds: list[int]) -> list[str]:
    """Forks a process for each case and kills it; then looks at what each left. Needs a process without groups."""
    reports = {seed: _killed(mapping, folder / f"killed-{seed}", seed) for seed in seeds}
    with joined(folder / "store"):
        bench = build(mapping, folder)
        results = {seed: bench.resumed(folder / f"killed-{seed}") for seed in seeds}
        wrong = []
        for seed, published in reports.items():
            result = results[seed]
            iteration = result[0] if isinstance(result, tuple) else 0
            bench.set_to(iteration)
            is_right = result is None if not iteration else result == (iteration, bench.digest())
            if not is_right or iteration < published:
                wrong.append(f"seed {seed}: iteration {published} was published, got {result}")
        return wrong


def _killed(mapping: dict[str, object], save: Path, seed: int) -> int:
    """The iteration whose publication a forked process reported last before it was killed; 0 for none."""
    chance = random.Random(seed)
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        _save_until_killed(mapping, save, sender, in_background=seed % 4 == 1)
    os.close(sender)
    with os.fdopen(receiver, "rb", buffering=0) as reports:
        assert reports.read(1) == b"r", "the process ended before it saved anything"
        time.sleep(chance.uniform(0.0, LONGEST_LIFE_S))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return len(reports.read())


def _save_until_killed(mapping: dict[str, object], save: Path, sender: int, *, in_background: bool) -> None:
    try:
        with joined(save.with_suffix(".store")):
            bench = build(mapping, save)
            saver = bench.saver(save, in_background=in_background)
            os.write(sender, b"r")
            iteration = 0
            while True:
                iteration += 1
                save_one(bench, saver, iteration)
                saver.finish()
                os.write(sender, b"p")
    finally:
        os._exit(1)


@contextlib.contextmanager
def joined(store: Path) -> Iterator[None]:
    """A process group of one rank."""
    import torch.distributed as dist

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel

    place = {"rank": 0, "world_size": 1, "master_address": "", "master_port": 0, "timeout_s": 60.0}
    parallel.join(backends.select(), **place, store=dist.FileStore(str(store), 1))
    try:
        yield
    finally:
        parallel.leave()


def main(argv: list[str] | None = None) -> int:
    """Runs the cases; 1 when any of them went wrong, with what did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; the others follow it")
    parser.add_argument("--arguments", type=Path, required=True, help="arguments of a run, as JSON")
    options = parser.parse_args(argv)
    mapping = json.loads(options.arguments.read_text())
    seeds = list(range(options.seed, options.seed + options.cases))
    from megatron_trainer import backend as backends

    backends.select().install()
    import megatron_trainer.train.setup  # noqa: F401 - what every forked process needs is imported once

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrong = kill_cases(mapping, folder, [seed for seed in seeds if seed % 2])
        with joined(folder / "damage-store"):
            wrong += damage_cases(mapping, folder, [seed for seed in seeds if not seed % 2])
    sys.stdout.write("\n".join([*wrong, f"{len(seeds)} cases, {len(wrong)} wrong"]) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
