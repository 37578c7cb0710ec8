"""Arguments that a run inherits from the args.json of the checkpoint that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_trainjob import input_file
from megatron_trainjob.args.cli import PATH
from megatron_trainjob.args.field import Task
from megatron_trainjob.args.parse import Accepted, Parsed, Refused, parse
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from megatron_trainjob.checkpoint_folder import RECORD
from megatron_trainjob.violation import Violation

OF_MODEL_AND_TEMPLATE = frozenset(
    {"model", "model_revision", "use_hf", "torch_dtype", "new_special_tokens", "rope_scaling", "max_model_len"}
) | {name for name, argument in ARGUMENTS.items() if argument.group == "base_template"}
OF_DATA = frozenset(name for name, argument in ARGUMENTS.items() if argument.group == "base_data")


def complete(parsed: Accepted, task: Task, *, world_size: int) -> Parsed:
    """The arguments with the recorded values that the user asked to inherit; validated again as a whole.

    The model is inherited whenever it is unset. A run that starts from no checkpoint is unchanged.
    """
    args = parsed.args
    names = _wanted(args) - parsed.given
    source = args.load or args.adapter_load
    if not names or not source:
        return parsed
    recorded = _read(Path(source))
    if isinstance(recorded, Violation):
        return Refused(violations=(recorded,))
    taken = {name: value for name, value in recorded.items() if name in names and value != ARGUMENTS[name].default}
    given = {name: _plain(getattr(args, name)) for name in parsed.given}
    again = parse({**taken, **given}, task=task, path=PATH, world_size=world_size)
    lacking = _lacking(again.args, f"{source}/{RECORD}") if isinstance(again, Accepted) else ()
    return Refused(violations=lacking) if lacking else again


def _lacking(args: TrainArgs, record: str) -> tuple[Violation, ...]:
    """The arguments that neither the user nor the record gives."""
    missing = {"model": args.model is None, "dataset": not (args.dataset or args.cached_dataset)}
    return tuple(
        Violation(path=f"{PATH}.{name}", value=None, message=f"is missing, and {record} names none; set it here")
        for name, is_missing in missing.items()
        if is_missing
    )


def _wanted(args: TrainArgs) -> frozenset[str]:
    names = frozenset({"model"} if args.model is None else ())
    names |= OF_MODEL_AND_TEMPLATE if args.load_args else frozenset()
    return names | (OF_DATA if args.load_data_args else frozenset())


def _read(folder: Path) -> Mapping[str, Any] | Violation:
    path = folder / RECORD
    try:
        content = input_file.read_json(path)
        return {name: value for name, value in content["arguments"].items() if name in ARGUMENTS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        message = f"arguments are to be loaded from {path}, which cannot be read ({err}); set them here instead"
        return Violation(path=f"{PATH}.load", value=str(folder), message=message)


def _plain(value: Any) -> Any:  # noqa: ANN401 (arguments have eight types)
    """The value as a YAML reader would return it."""
    return list(value) if isinstance(value, tuple) else value
