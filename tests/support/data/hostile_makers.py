"""Makers of files that are to harm whoever reads them: broken, endless or forged, each kind by chance."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.checkpoint.forged_pickles import gadgets
from tests.support.models.model_configs import PUBLISHED

Make = Callable[[random.Random, Path], Path]
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
