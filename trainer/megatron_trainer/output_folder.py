"""The folder of a run: its name, its version, and the record of the arguments in it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from megatron_trainer import clock
from megatron_trainer.checkpoint.folder import replace_text
from megatron_trainer.failure import TrainingError
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.exit_codes import ExitCode

VERSION = re.compile(r"v(\d+)-\d{8}-\d{6}")


def choose(args: TrainArgs) -> Path:
    """The absolute folder that this run writes to, equal on all ranks and created. Collective.

    With add_version it is a new folder v{N}-{date}-{time} inside `save`, chosen by the first rank.
    """
    save = Path(derive.save_directory(args)).absolute()
    chosen = [next_version(save, clock.stamp()) if args.add_version else save]
    dist.broadcast_object_list(chosen, src=0)
    try:
        chosen[0].mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, f"spec.args.save: cannot create {save}: {err}") from err
    return chosen[0]


def next_version(save: Path, stamp: str) -> Path:
    """The version folder after the newest one that exists."""
    names = [path.name for path in save.iterdir()] if save.is_dir() else []
    versions = [int(match[1]) for name in names if (match := VERSION.fullmatch(name))]
    return save / f"v{max(versions, default=-1) + 1}-{stamp}"


def write_json(record: Mapping[str, object], path: Path) -> None:
    """Writes a record for people and other programs; the first rank does it for all."""
    if dist.get_rank() == 0:
        replace_text(path, json.dumps(record, indent=1))


def arguments_record(
    args: TrainArgs, task: str, resolved: Mapping[str, object], model_config: Mapping[str, object]
) -> dict[str, object]:
    """What args.json holds: every argument as it is used, what was derived, and the model's config.json as it is used.

    For people, for a later export, and for a run that goes on from a checkpoint. Secrets are left out.
    """
    arguments = {name: None if ARGUMENTS[name].secret else value for name, value in dataclasses.asdict(args).items()}
    return {
        "task": task,
        "arguments": arguments,
        "resolved": dict(resolved),
        "model_config": json.loads(json.dumps(dict(model_config), default=str)),
    }
