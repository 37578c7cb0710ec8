"""One rank of a run that continues from a checkpoint, with what it logged and how its optimizer is set up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ranks.tiny_run import TinyRun, read_run


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """run: exit code, message and log; warnings: what was logged; groups: the optimizer's, without parameters.

    steps: that each of its parameters has made. settings: of the optimizer and of the run.
    """

    run: TinyRun
    warnings: tuple[str, ...]
    groups: tuple[dict[str, Any], ...] = ()
    steps: frozenset[float] = frozenset()
    settings: dict[str, Any] | None = None


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def resume_rank(mapping: dict[str, object], task: str, attempt: int) -> Resumed:
    """Continues from the newest checkpoint in `save` to the end."""
    import torch
    import torch.distributed as dist

    from megatron_trainer.environment import Environment
    from megatron_trainer.failure import InvalidInput, TrainingError
    from megatron_trainer.termination import Termination
    from megatron_trainer.train import setup
    from megatron_trainer.train.loop import fit
    from megatron_trainjob.args.parse import Refused, parse

    save, log = Path(str(mapping["save"])), _Lines()
    logging.getLogger("megatron_trainer").addHandler(log)
    try:
        parsed = parse(mapping, task=task)  # type: ignore[arg-type]
        if isinstance(parsed, Refused):
            raise InvalidInput(parsed.violations)
        env = Environment(
            rank=dist.get_rank(), world_size=dist.get_world_size(), device="cpu", resume="Auto", attempt=attempt
        )
        backend = setup.start_process(env, parsed.args)
        run, state = setup.build(parsed, task, env, backend, Termination())  # type: ignore[arg-type]
        fit(run, state)
        run.reporter.close()
    except TrainingError as error:
        return Resumed(
            run=read_run(save, exit_code=int(error.exit_code), message=str(error)), warnings=tuple(log.lines)
        )
    finally:
        logging.getLogger("megatron_trainer").removeHandler(log)
    optimizer = run.engine.optimizer
    states = [state for part in optimizer.chained_optimizers for state in part.optimizer.state.values()]
    return Resumed(
        run=read_run(save),
        warnings=tuple(log.lines),
        groups=tuple({k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups),
        steps=frozenset(float(torch.as_tensor(state["step"])) for state in states if "step" in state),
        settings={
            "clip_grad": optimizer.config.clip_grad,
            "eval_interval": run.evaluations.interval,
            "save_interval": run.args.save_interval,
            "lora_dropout": run.args.lora_dropout,
        },
    )
