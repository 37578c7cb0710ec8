"""Exports for tests: the same code path as `mtj export`, on a worker of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ranks.pool import gloo_ranks


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export said. exit_code: 0 done, else why not, with `message`; comparison: its precision test's lines."""

    exit_code: int
    message: str = ""
    told: tuple[str, ...] = ()
    comparison: tuple[str, ...] = ()


def export(**given: object) -> Exported:
    """Exports with these arguments."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return gloo_ranks(1).run(export_here, given)[0]


def export_here(given: dict[str, Any]) -> Exported:
    """The worker's part of `export`; failures that carry an exit code are an answer."""
    from megatron_trainer import backend as backends
    from megatron_trainer.convert.export import export as convert
    from megatron_trainer.failure import InvalidInput, TrainingError
    from megatron_trainjob.args.parse import Refused, parse

    told: list[str] = []
    try:
        parsed = parse(given, task="export", path="args", world_size=1)
        if isinstance(parsed, Refused):
            raise InvalidInput(parsed.violations)
        compared = convert(parsed.args, parsed.given, backends.select(), told.append)
    except TrainingError as err:
        return Exported(exit_code=int(err.exit_code), message=str(err), told=tuple(told))
    passed = compared is None or compared.passed
    lines = () if compared is None else tuple(compared.lines())
    return Exported(exit_code=0 if passed else 1, told=tuple(told), comparison=lines)
