"""Rows per CPU second and fill: this trainer's tokenizing and packing against ms-swift's own, in one run.

    python benchmarks/data/tokenize_and_pack.py MODEL_DIR ROWS.jsonl [--rows 100000] [--length 8192] [--processes 2]

ms-swift is called as its trainer calls it: load_dataset, EncodePreprocessor, PackingDataset (the package binpacking in
chunks of 1,000). It is left out when it cannot be imported; `--peer DIR` names a folder it was installed to, without
its dependencies on torch and transformers (`pip install --no-deps --target DIR ms-swift modelscope ...`), which are
this environment's for both. MODEL_DIR needs the tokenizer and a config.json. Every way runs in a process of its own.
Times are CPU seconds of all processes, so that other work on the machine counts little, and wall seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "trainer"))

from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.ordering.pack import pack
from megatron_trainer.data.reading.source import open_source
from megatron_trainer.data.reading.spec import parse_spec
from megatron_trainer.data.storage.store import Store
from megatron_trainer.data.storage.tokenize import tokenize


class Clock:
    """CPU seconds of this process and its finished children, and wall seconds, since it was made."""

    def __init__(self):
        self._cpu, self._wall = self._used(), time.monotonic()

    def _used(self):
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def read(self):
        return {"cpu_s": round(self._used() - self._cpu, 2), "wall_s": round(time.monotonic() - self._wall, 2)}


def write_rows(source: Path, target: Path, count: int) -> None:
    """`count` rows: those of the source again and again, each copy with a number in it, so that no two are equal."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    with target.open("w") as stream:
        for number, row in enumerate(islice(cycle(rows), count)):
            first, *rest = row["messages"]
            first = {**first, "content": f"{number}: {first['content']}"}
            stream.write(json.dumps({"messages": [first, *rest]}) + "\n")


def ours(path: Path, options: argparse.Namespace, folder: Path) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    clock = Clock()
    encoder = Encoder(tokenizer, EncodeSettings(max_length=options.length))
    tokenize(open_source(parse_spec(str(path))).records(), encoder, folder / "store", num_processes=options.processes)
    store = Store(folder / "store")
    tokenized = clock.read()
    clock = Clock()
    lengths = store.lengths.sum(axis=1)
    packing = pack(lengths, options.length)
    packed = clock.read()
    return result("ours", lengths, len(packing), tokenized, packed, options)


def ms_swift(path: Path, options: argparse.Namespace, folder: Path) -> dict:
    os.environ.update(MODELSCOPE_CACHE=str(folder / "ms"), HF_HUB_OFFLINE="1", MODELSCOPE_OFFLINE="1")
    sys.path += [options.peer] if options.peer else []
    from swift.dataset import EncodePreprocessor, PackingDataset, load_dataset
    from swift.model import get_processor
    from swift.template import get_template

    processor = get_processor(options.model, model_type="llama")
    template = get_template(processor, template_type="chatml", max_length=options.length)
    template.set_mode("train")
    clock = Clock()
    rows, _ = load_dataset([str(path)], num_proc=options.processes)
    table = EncodePreprocessor(template)(rows, num_proc=options.processes, strict=False)
    tokenized = clock.read()
    clock = Clock()
    packed = PackingDataset(template, table, packing_length=options.length)
    lengths = np.array([sum(row) if isinstance(row, list) else row for row in table["lengths"]])
    return result("ms-swift", lengths, len(packed.packed_idx), tokenized, clock.read(), options)


def result(way, lengths, num_rows, tokenized, packed, options) -> dict:
    return {
        "way": way,
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "tokenizing": tokenized,
        "packing": packed,
        "rows_per_cpu_second": round(len(lengths) / (tokenized["cpu_s"] + packed["cpu_s"])),
        "rows_per_second": round(len(lengths) / (tokenized["wall_s"] + packed["wall_s"])),
        "packed_rows": num_rows,
        "fill": round(float(lengths.sum() / (num_rows * options.length)), 5),
    }


WAYS = {"ours": ours, "ms-swift": ms_swift}


def run_alone(way: str) -> None:
    """This command again for one way only: nothing of the other is imported or cached."""
    subprocess.run([sys.executable, *sys.argv, "--way", way], check=way == "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with the tokenizer and config.json")
    parser.add_argument("data", type=Path, help="JSON lines of messages")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--peer", help="folder that ms-swift was installed to; without it only our way is run")
    parser.add_argument("--way", choices=WAYS, help="run only this one")
    options = parser.parse_args()
    if options.way is None:
        for way in WAYS if options.peer else ("ours",):
            run_alone(way)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(options.data, folder / "rows.jsonl", options.rows)
        print(json.dumps(WAYS[options.way](folder / "rows.jsonl", options, folder)), flush=True)


if __name__ == "__main__":
    main()
