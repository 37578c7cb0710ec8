"""Files made to harm whoever reads them, by fixed seeds, and the readers that must not be harmed.

`python hostile_files.py FOLDER COUNT SEED` makes them, reads each as a run would, and prints what was wrong: code that
was run, more than ten seconds of a processor, more than a gigabyte, an exception without a reason, or an exit code that
asks for a retry.

They are read in forked processes of fifty files each, after one has imported everything: what a file takes is the
growth of the process's highest memory while it is read.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.checkpoint.forged_pickles import gadgets
from tests.support.models.model_configs import PUBLISHED

Make = Callable[[random.Random, Path], Path]
# What hangs takes no processor: after the hard limit, by the clock on the wall, its process is ended.
SECONDS, MEMORY_BYTES, BATCH, HARD_LIMIT_S = 10.0, 2**30, 50, 60
LLAMA = PUBLISHED["SmolLM2-135M"][1]
ALIASES = "\n".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9) if i else 'x, x'}]" for i in range(12))


def marker(folder: Path) -> Path:
    """The file that exists once any code in a hostile file has been run."""
    return folder / "it-was-run"


def _bytes(chance: random.Random, size: int) -> bytes:
    return chance.randbytes(size)


def _broken(chance: random.Random, content: bytes) -> bytes:
    """The content cut off, with bytes changed, repeated, or left alone."""
    way = chance.randrange(4)
    if way == 0:
        return content[: chance.randrange(len(content) + 1)]
    if way == 1:
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 9)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    return content * chance.randrange(2, 5) if way == 2 else content


def _value(chance: random.Random, depth: int = 0) -> object:
    makers: list[Callable[[], object]] = [
        lambda: None,
        lambda: chance.choice([0, -1, 10**18, 2**70, 1e308, float("nan"), float("inf")]),
        lambda: chance.choice(["", "\x00", "\x1b[2J", "\ud800", "a" * 10**5, "{{ 1 }}", "<|im_end|>"]),
        lambda: chance.choice([True, False]),
        lambda: [_value(chance, depth + 1) for _ in range(chance.randrange(4))] if depth < 5 else [],
        lambda: {str(i): _value(chance, depth + 1) for i in range(chance.randrange(4))} if depth < 5 else {},
    ]
    return chance.choice(makers)()


def make_jsonl(chance: random.Random, folder: Path) -> Path:
    path = folder / "rows.jsonl"
    keys = ["messages", "conversations", "text", "query", "response", "instruction", "output", "tools", "channel"]
    rows: list[bytes] = []
    for _ in range(chance.randrange(1, 12)):
        row = {key: _value(chance) for key in chance.sample(keys, chance.randrange(1, 5))}
        rows.append(_broken(chance, json.dumps(row).encode()))
    rows.append(chance.choice([b"[" * 10**5, b"1" * 10**5, b'{"a":' * 10**4, b"\xff\xfe", b"", b'"' + b"a" * 10**6]))
    path.write_bytes(b"\n".join(rows))
    return path


def make_json(chance: random.Random, folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_bytes(chance.choice([b"[" * 10**6, b"{}", b"", _broken(chance, json.dumps([_value(chance)]).encode())]))
    return path


def make_csv(chance: random.Random, folder: Path) -> Path:
    path = folder / "rows.csv"
    content = (
        b"query,response\n" + b'"a","b"\n' * chance.randrange(9) + chance.choice([b'"' * 10**5, b"\x00,\x00", b","])
    )
    path.write_bytes(_broken(chance, content))
    return path


def repeated(text: str, count: int) -> Any:
    """A column with the text in every row, which holds it once."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))


def make_parquet(chance: random.Random, folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    path = folder / "rows.parquet"
    texts = repeated("a" * chance.choice([1, 2**10, 2**24]), chance.choice([1, 999]))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd")
    content = path.read_bytes()
    path.write_bytes(content if chance.random() < 0.3 else _broken(chance, content))
    return path


def make_gz(chance: random.Random, folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    content = chance.choice([b"\n" * 10**6, b"a" * 10**7, b'{"text": "a"}\n' * 100])
    path.write_bytes(_broken(chance, gzip.compress(content, 1)))
    return path


def make_index(chance: random.Random, folder: Path) -> Path:
    path = folder / ".metadata"
    honest = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81."
    content = chance.choice([*gadgets(marker(folder)).values(), honest, _bytes(chance, 200)])
    path.write_bytes(content if chance.random() < 0.5 else _broken(chance, content or b"."))
    return path


def make_yaml(chance: random.Random, folder: Path) -> Path:
    path = folder / "job.yaml"
    texts = [
        ALIASES,
        "a: " + "1" * 10**5 + "x",
        "[" * 5000,
        "a: !!python/object/apply:os.system [touch x]",
        "\t",
        "? ?",
    ]
    path.write_bytes(_broken(chance, chance.choice(texts).encode()))
    return path


def make_template(chance: random.Random, folder: Path) -> Path:
    path = folder / "template.jinja"
    bodies = [
        "{{ 'a' * 10**12 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch " + str(marker(folder)) + "') }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 // 0 }}",
        "{{ messages[99].content }}",
        "{{ raise_exception('no') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ]
    path.write_bytes(_broken(chance, chance.choice(bodies).encode()))
    return path


def make_manifest(chance: random.Random, folder: Path) -> Path:
    """manifest.json of a checkpoint: names that lead out of it, sizes beyond measure."""
    path = folder / "iter_0000001"
    path.mkdir(exist_ok=True)
    names = ["../../../../etc/passwd", "/dev/zero", "a" * 300, "", "\x00", ".metadata"]
    files = {chance.choice(names): {"size_bytes": chance.choice([0, 10**18, -1]), "crc32": "0"} for _ in range(3)}
    fields = {"iteration": chance.choice([1, 10**18, "x"]), "files": chance.choice([files, [], None])}
    checksum = f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"
    (path / "manifest.json").write_bytes(_broken(chance, json.dumps({**fields, "crc32": checksum}).encode()))
    return path


def make_safetensors(chance: random.Random, folder: Path) -> Path:
    path = folder / "model.safetensors"
    header = {
        "w": {"dtype": "F32", "shape": [chance.choice([1, 10**18, -1])], "data_offsets": [0, chance.choice([4, 2**60])]}
    }
    text = json.dumps(header).encode()
    length = chance.choice([len(text), 2**63, 0, 10**9])
    path.write_bytes(_broken(chance, struct.pack("<Q", length) + text + b"\x00" * 4))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def make_weights_index(chance: random.Random, folder: Path) -> Path:
    names: list[object] = [
        "../x.safetensors",
        "/dev/zero",
        "m.safetensors",
        7,
        None,
        "a" * 300,
        "\0",
        "pipe.safetensors",
    ]
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "m.safetensors").write_bytes(_broken(chance, struct.pack("<Q", 2) + b"{}"))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    found = {f"model.layers.{number}.weight": chance.choice(names) for number in range(chance.randrange(1, 9))}
    text = json.dumps({"weight_map": chance.choice([found, found, _value(chance)])})
    (folder / "model.safetensors.index.json").write_bytes(_broken(chance, text.encode()))
    return folder


def make_config(chance: random.Random, folder: Path) -> Path:
    changed = {key: _value(chance) for key in chance.sample(sorted(LLAMA), chance.randrange(1, 4))}
    scaling = chance.choice([{}, {"rope_scaling": _value(chance)}, {"quantization_config": _value(chance)}])
    (folder / "config.json").write_bytes(_broken(chance, json.dumps({**LLAMA, **changed, **scaling}).encode()))
    return folder


def make_tokenizer(chance: random.Random, folder: Path) -> Path:
    from tests.support.models import tiny_model

    tiny_model.tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    path = folder / chance.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    content = json.loads(path.read_text())
    inner = chance.choice([content, content.get("model", content)])
    for key in chance.sample(sorted(inner), min(2, len(inner))):
        inner[key] = _value(chance)
    path.write_bytes(_broken(chance, json.dumps(content).encode()))
    return folder


def make_checkpoint(chance: random.Random, folder: Path) -> Path:
    """What another program left: an index that is a forged pickle, files that are none."""
    path = folder / "iter_0000001"
    path.mkdir()
    (path / "metadata.json").write_bytes(_broken(chance, b'{"sharded_backend": "torch_dist"}'))
    (path / ".metadata").write_bytes(chance.choice(list(gadgets(marker(folder)).values())))
    (folder / "latest_checkpointed_iteration.txt").write_bytes(_broken(chance, b"1"))
    return folder


def make_torch_file(chance: random.Random, folder: Path) -> Path:
    import torch

    path = folder / "pytorch_model.bin"
    torch.save(chance.choice([{"w": torch.ones(2)}, [torch.ones(2)], {"w": 1}]), path)
    content = chance.choice([path.read_bytes(), *gadgets(marker(folder)).values()])
    path.write_bytes(_broken(chance, content or b"."))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


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
