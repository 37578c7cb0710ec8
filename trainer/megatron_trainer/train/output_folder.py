"""The folder of a run: its name, its version, and the record of the arguments in it."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from megatron_trainer import clock
from megatron_trainer.checkpoint.folder import Occupied, Owner, owned, publish_text, workshop
from megatron_trainer.checkpoint.folder import claim as claim_folder
from megatron_trainer.checkpoint.folder import owner as last_owner
from megatron_trainer.checkpoint.lease import Heartbeat
from megatron_trainer.environment import Environment
from megatron_trainer.failure import TrainingError
from megatron_trainjob import shown
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


def write_json(record: Mapping[str, object], path: Path, owner: Owner) -> None:
    """Writes a record for people and other programs, with secrets redacted; only the first rank writes."""
    if dist.get_rank() == 0:
        with owned(path.parent, owner):
            publish_text(path, json.dumps(shown.record(record), indent=1), owner)


def arguments_record(
    args: TrainArgs,
    task: str,
    resolved: Mapping[str, object],
    model_config: Mapping[str, object],
    weights: Mapping[str, str | None],
) -> dict[str, object]:
    """What args.json holds: every argument with its effective value, derived values, the effective config.json of the
    model, and the weights that the run starts from.

    For people, for a later export, and for a run that resumes from a checkpoint. Secrets are left out.
    """
    arguments = {name: None if ARGUMENTS[name].secret else value for name, value in dataclasses.asdict(args).items()}
    return {
        "task": task,
        "arguments": shown.record(arguments),
        "resolved": dict(resolved),
        "model_config": json.loads(json.dumps(dict(model_config), default=str)),
        "weights": shown.record(dict(weights)),
    }


def claim(save: Path, env: Environment) -> tuple[Owner, Heartbeat | None]:
    """Claims the folder for this launch of the ranks and starts the heartbeat that marks it as in use. Collective.

    Only the first rank has the heartbeat.

    Raises:
        TrainingError: the folder belongs to another job or a newer attempt, or cannot be written.
    """
    token = [uuid.uuid4().hex[:8]]
    dist.broadcast_object_list(token, src=0)
    owner = Owner(job_uid=env.job_uid, attempt=env.attempt, job_name=env.job_name, token=token[0])
    taken = _take(save, owner, adopts=env.adopts) if env.rank == 0 else None
    problem = [taken if isinstance(taken, str) else None]
    dist.broadcast_object_list(problem, src=0)
    if problem[0]:
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, problem[0])
    return owner, taken if isinstance(taken, Heartbeat) else None


def _take(save: Path, owner: Owner, *, adopts: bool) -> Heartbeat | str:
    """The heartbeat in the folder, or the reason why this run may not write there."""
    try:
        if not claim_folder(save, owner, adopts=adopts):
            return _lost(save, owner)
        return Heartbeat(workshop(save, owner))
    except Occupied as err:
        return str(err)
    except OSError as err:
        return f"spec.args.save: cannot write to {save}: {err}"


def _lost(save: Path, owner: Owner) -> str:
    """Why the claim failed: a newer attempt has the folder, or another job claimed it at the same moment."""
    current = last_owner(save)
    if current is None or current.job_uid == owner.job_uid:
        return f"{save} belongs to a newer attempt of this job; attempt {owner.attempt} must not write to it"
    return (
        f"{save} was claimed by another job at the same moment; use another save folder for this one, or start it again"
    )
