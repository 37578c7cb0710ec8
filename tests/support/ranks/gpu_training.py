"""The trainer in this process on one GPU, for the tests in tests/gpu: same code path as a rank of a pod.

Arguments are put in behind the check of their status, because these tests are what earns a status that needs a GPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.ranks import tiny_run


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run left. modules: names of the classes of modules that computed. kernels: launches by their names."""

    run: tiny_run.TinyRun
    engine: Any
    modules: frozenset[str]
    kernels: Counter[str]

    @property
    def losses(self) -> list[float]:
        return self.run.column("lm loss")

    def linears(self) -> list[Any]:
        """TransformerEngine's linears of all layers."""
        modules = self.engine.models[0].decoder.modules()
        return [module for module in modules if hasattr(module, "fp8_meta") and hasattr(module, "weight")]

    def optimizer(self) -> Any:
        """The optimizer under Megatron's wrappers."""
        return getattr(self.engine.optimizer, "chained_optimizers", [self.engine.optimizer])[0].optimizer


@contextlib.contextmanager
def single_rank(store: Path) -> Iterator[Any]:
    """The backend of this machine, bound to its first GPU, with a process group of one."""
    import torch.distributed as dist

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel

    backend = backends.select()
    backend.install()
    backend.bind(0)
    place = {"rank": 0, "world_size": 1, "master_address": "", "master_port": 0}
    parallel.join(backend, **place, timeout_s=600, store=dist.FileStore(str(store), 1))
    try:
        yield backend
    finally:
        parallel.leave()


def forget_attention_kernels() -> None:
    """TransformerEngine asks its environment again which attention to use, at the next attention."""
    from transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention import _attention_backends

    _attention_backends["backend_selection_requires_update"] = True


def train(
    given: Mapping[str, object],
    *,
    model: Path,
    data: Path,
    save: Path,
    resume: str = "Never",
    count_kernels: bool = False,
) -> Trained:
    """Trains four steps, or as the given arguments say."""
    import torch

    from megatron_trainer.environment import Environment
    from megatron_trainer.termination import Termination
    from megatron_trainer.train import setup
    from megatron_trainer.train.loop import fit
    from megatron_trainer.train.outputs import write_outputs
    from megatron_trainjob.args.parse import parse

    parsed = parse(tiny_run.arguments(model, data, save), task="sft")
    parsed = replace(parsed, args=replace(parsed.args, **given), given=parsed.given | given.keys())
    env = Environment(rank=0, world_size=1, resume=resume)
    backend = setup.start_process(env, parsed.args)
    run, state = setup.build(parsed, "sft", env, backend, Termination())
    modules: set[str] = set()
    note = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: modules.add(type(module).__name__))
    kernels: Counter[str] = Counter()
    try:
        with _launches(kernels) if count_kernels else contextlib.nullcontext():
            state = fit(run, state).state
        write_outputs(run, state, is_done=True)
    finally:
        note.remove()
        run.reporter.close()
    return Trained(run=tiny_run.read_run(save), engine=run.engine, modules=frozenset(modules), kernels=kernels)


@contextlib.contextmanager
def _launches(kernels: Counter[str]) -> Iterator[None]:
    """Counts the kernels that run meanwhile, by name."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        yield
    for event in profile.key_averages():
        kernels[event.key] += event.count
