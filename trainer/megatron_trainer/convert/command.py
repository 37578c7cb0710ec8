"""python -m megatron_trainer export: converts a checkpoint, or stores tokenized data, in this process.

    export --to_hf true --mcore_model RUN [--mcore_adapters RUN] [--output_dir FOLDER] [--test_convert_precision true]

megatron-core decides at import time which GPU libraries it uses, so the backend is installed before the conversion.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_trainer.failure import TrainingError
from megatron_trainjob.args import availability as status
from megatron_trainjob.args.cli import parse_command_line
from megatron_trainjob.args.parse import Accepted, Refused
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.exit_codes import ExitCode

HELP = ("-h", "--help")
STEP_TIMEOUT_S = 600.0


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 success, 1 the precision test failed, else the cause of the failure (exit_codes.py)."""
    if not argv or set(argv) & set(HELP):
        sys.stdout.writelines(f"{line}\n" for line in _help())
        return ExitCode.OK if argv else ExitCode.USAGE
    parsed = parse_command_line(argv, "export", world_size=1)
    for warning in parsed.warnings:
        sys.stderr.write(f"{warning}\n")
    if isinstance(parsed, Refused):
        sys.stderr.writelines(f"{violation}\n" for violation in parsed.violations)
        return ExitCode.BAD_ARGUMENTS
    try:
        return _store_data(parsed) if parsed.args.to_cached_dataset else _convert(parsed)
    except TrainingError as err:
        sys.stderr.write(f"{err}\n")
        return int(err.exit_code)


def _help() -> Iterator[str]:
    """The help text of an export's arguments, from their declarations."""
    yield from str(__doc__).split("\n\n")[:2]
    yield ""
    for argument in ARGUMENTS.values():
        if argument.group == "export" and argument.status == "works":
            yield f"  --{argument.name:<24}{argument.help}"
    yield "Arguments of the model, such as --model and --torch_dtype: docs/arguments.md"


def _store_data(parsed: Accepted) -> int:
    """Tokenizes for the task that the arguments name: pairs for a given rlhf_type, otherwise conversations."""
    from megatron_trainer.data import command

    args = parsed.args
    folder = Path(args.output_dir or f"{args.model}-cached_dataset")
    if folder.exists() and not args.exist_ok:
        sys.stderr.write(f"args.output_dir: {folder} exists; choose another folder, or set exist_ok to write into it\n")
        return ExitCode.BAD_ARGUMENTS
    report = command.write_cached(args, "rlhf" if "rlhf_type" in parsed.given else "sft", folder)
    sys.stdout.writelines(f"{line}\n" for line in command.describe(report))
    sys.stdout.write(f"written: {folder} (pass it as cached_dataset)\n")
    return ExitCode.OK


def _convert(parsed: Accepted) -> int:
    from megatron_trainer import backend as backends

    args = parsed.args
    _quiet(logging.getLevelName((args.logging_level or "WARNING").upper()))
    backend = backends.select()
    backends.refuse_missing_gpu(backend)
    backend.install()
    backend.bind(0)
    if backend.num_devices() is None and (violations := status.without_gpu(args, task="export")):
        sys.stderr.writelines(f"{violation}\n" for violation in violations)
        return ExitCode.BAD_ARGUMENTS
    from torch.distributed import HashStore  # type: ignore[attr-defined]  # not in torch's list of exports

    from megatron_trainer import parallel
    from megatron_trainer.convert.export import export

    store = HashStore()  # no port that a training run on this machine might have taken
    parallel.join(
        backend, rank=0, world_size=1, master_address="", master_port=0, timeout_s=STEP_TIMEOUT_S, store=store
    )
    try:
        comparison = export(args, parsed.given, backend, _say)
    finally:
        parallel.leave()
    if comparison is None:
        return ExitCode.OK
    sys.stdout.writelines(f"{line}\n" for line in comparison.lines())
    return ExitCode.OK if comparison.passed else ExitCode.ERROR


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _quiet(level: int) -> None:
    """Silences the import warnings of Megatron and torch about missing optional libraries."""
    logging.getLogger().setLevel(level)
    if level > logging.DEBUG:
        warnings.simplefilter("ignore")
