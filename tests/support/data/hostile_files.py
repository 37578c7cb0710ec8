"""Files made to harm whoever reads them, by fixed seeds, and the readers that must not be harmed.

`python hostile_files.py FOLDER COUNT SEED` makes them, reads each as a run would, and prints what was wrong: code that
was run, more than ten seconds of a processor, more than a gigabyte, an exception without a reason, or an exit code that
asks for a retry.

They are read in forked processes of fifty files each, after one has imported everything: what a file takes is the
growth of the process's highest memory while it is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.data.hostile_makers import (
    LLAMA,
    Make,
    make_checkpoint,
    make_config,
    make_csv,
    make_gz,
    make_index,
    make_json,
    make_jsonl,
    make_manifest,
    make_parquet,
    make_safetensors,
    make_template,
    make_tokenizer,
    make_torch_file,
    make_weights_index,
    make_yaml,
    marker,
)

# What hangs takes no processor: after the hard limit, by the clock on the wall, its process is ended.
SECONDS, MEMORY_BYTES, BATCH, HARD_LIMIT_S = 10.0, 2**30, 50, 60


def read_model_folder(folder: Path) -> None:
    """As training does before it builds: config, tokenizer, file names, headers. Raises InvalidInput."""
    from megatron_trainer import model_source
    from megatron_trainer.convert.source import open_checkpoint
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob import weight_files
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(folder))
    list(weight_files.problems(folder, LLAMA))
    read_model(folder, args)
    model_source.tokenizer(args, folder) if (folder / "tokenizer.json").exists() else open_checkpoint(folder)


def read_checkpoint(folder: Path) -> None:
    from megatron_trainer.checkpoint import foreign

    found = foreign.find(folder)
    if found is not None:
        foreign.accepted(found)


def read_rows(path: Path) -> None:
    from megatron_trainer.data.reading.read import read_file
    from megatron_trainer.data.row import parse_row
    from megatron_trainer.data.values import RowError

    for _, payload in read_file(path):
        try:
            parse_row(payload)
        except RowError:
            continue


def read_index(path: Path) -> None:
    from megatron_trainjob import checkpoint_index

    problem = checkpoint_index.problem(path)
    assert problem is None or str(path) in problem


def read_yaml(path: Path) -> None:
    from megatron_trainjob.args import yaml_file

    with contextlib.suppress(yaml_file.YamlProblem):
        yaml_file.load_all(path)


def read_template(path: Path) -> None:
    from megatron_trainer.data.conversation.template import choose_template
    from tests.support.models import tiny_model

    choose_template(tiny_model.tokenizer(), template=str(path), use_chat_template=True)


def read_manifest(path: Path) -> None:
    from megatron_trainjob.checkpoint_folder import inspect

    found = inspect(path)
    assert found.problem or found.manifest


KINDS: dict[str, tuple[Make, Callable[[Path], None]]] = {
    "jsonl": (make_jsonl, read_rows),
    "json": (make_json, read_rows),
    "csv": (make_csv, read_rows),
    "parquet": (make_parquet, read_rows),
    "gz": (make_gz, read_rows),
    "index": (make_index, read_index),
    "yaml": (make_yaml, read_yaml),
    "template": (make_template, read_template),
    "manifest": (make_manifest, read_manifest),
    "weights index": (make_weights_index, read_model_folder),
    "config": (make_config, read_model_folder),
    "tokenizer": (make_tokenizer, read_model_folder),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "torch file": (make_torch_file, read_model_folder),
    "safetensors": (make_safetensors, read_model_folder),
}


def main(folder: Path, count: int, seed: int) -> int:
    """Makes and reads them all; 1 when any of them did harm."""
    _import_everything()
    wrong, number = 0, 0
    while number < count:
        read = _in_a_fork(folder, range(number, min(number + BATCH, count)), seed)
        for done, problem in read:
            if problem:
                wrong += 1
                print(f"{done} {_kind(done)}: {problem}", flush=True)
        number = read[-1][0] + 1
    print(f"{count} files, {wrong} wrong")
    return 1 if wrong else 0


def _import_everything() -> None:
    from megatron_trainer import model_source  # noqa: F401 - imported once, before the forks
    from megatron_trainer.checkpoint import foreign  # noqa: F401
    from megatron_trainer.convert import source  # noqa: F401
    from megatron_trainer.data import bounded
    from megatron_trainer.data.conversation import template  # noqa: F401
    from megatron_trainer.data.reading import read  # noqa: F401
    from megatron_trainer.models import spec  # noqa: F401
    from tests.support.models import tiny_model

    bounded.bounded.__wrapped__.__defaults__ = (0.5, 2**28)  # type: ignore[attr-defined]
    tiny_model.tokenizer()


def _kind(number: int) -> str:
    return list(KINDS)[number % len(KINDS)]


def _in_a_fork(folder: Path, numbers: range, seed: int) -> list[tuple[int, str]]:
    """Each number with what was wrong; the last one may have ended its process."""
    read_end, write_end = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read_end)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with os.fdopen(write_end, "w") as answers:
            for number in numbers:
                answers.write(json.dumps([number, _try(folder / f"{number}", number, seed)]) + "\n")
                answers.flush()
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answers:
        found = [tuple(json.loads(line)) for line in answers]
    _, status = os.waitpid(process, 0)
    if status:
        found.append((numbers[len(found)], f"ended the process: {os.waitstatus_to_exitcode(status)}"))
    return found


def _try(place: Path, number: int, seed: int) -> str:
    """What was wrong with reading one file, "" for nothing."""
    make, reader = KINDS[_kind(number)]
    place.mkdir()
    path = make(random.Random(f"{seed}-{number}"), place)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(HARD_LIMIT_S)
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here
    started, before = time.process_time(), _memory_bytes("VmRSS")
    problem = _outcome(reader, path)
    if (taken := time.process_time() - started) > SECONDS:
        problem += f" took {taken:.0f} s"
    if (grown := _memory_bytes("VmHWM") - before) > MEMORY_BYTES:
        problem += f" took {grown / 2**20:.0f} MiB"
    if marker(place).exists():
        problem += " ran code"
    signal.alarm(0)
    shutil.rmtree(place)
    return problem


def _outcome(reader: Callable[[Path], None], path: Path) -> str:
    from megatron_trainer.failure import TrainingError
    from megatron_trainjob.exit_codes import retry_class

    try:
        reader(path)
    except TrainingError as err:
        if retry_class(err.exit_code) != "never" or not str(err):
            return f"exit code {err.exit_code} without an end or a reason: {err}"
    except BaseException as err:  # noqa: BLE001 - whatever it is, it is told
        return f"{type(err).__name__}: {str(err)[:300]}"
    return ""


def _memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
