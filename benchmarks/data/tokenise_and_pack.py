"""Rows per CPU second and fill: this trainer's tokenising and packing against the usual way, in one run.

    python benchmarks/data/tokenise_and_pack.py MODEL_DIR ROWS.jsonl [--rows 100000] [--length 8192] [--processes 2]

The usual way is that of ms-swift, in its shortest form: `datasets.map` renders each row piece by piece and tokenises
every piece with the tokenizer's own call; rows are packed by the package binpacking in chunks of 1,000, and the last
bin of a chunk goes into the next. Needs `pip install binpacking`. Times are CPU seconds of all processes, so that
other work on the machine does not count, and wall seconds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import binpacking
import datasets
import numpy as np
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "trainer"))

from megatron_trainer.data.encode import Encoder, EncodeSettings
from megatron_trainer.data.pack import pack
from megatron_trainer.data.source import open_source
from megatron_trainer.data.spec import parse_spec
from megatron_trainer.data.store import Store
from megatron_trainer.data.tokenise import tokenise


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


def ours(path: Path, tokenizer, folder: Path, options) -> dict:
    clock = Clock()
    encoder = Encoder(tokenizer, EncodeSettings(max_length=options.length))
    tokenise(open_source(parse_spec(str(path))).records(), encoder, folder / "store", num_processes=options.processes)
    store = Store(folder / "store")
    tokenised = clock.read()
    clock = Clock()
    lengths = store.lengths.sum(axis=1)
    packing = pack(lengths, options.length)
    packed = clock.read()
    return result("ours", len(store), lengths, len(packing), tokenised, packed, options)


def usual(path: Path, tokenizer, folder: Path, options) -> dict:
    def encode(row):
        ids, labels = [], []
        for text, is_trained in pieces(row["messages"]):
            part = tokenizer(text, return_attention_mask=False, add_special_tokens=False)["input_ids"]
            ids += part
            labels += part if is_trained else [-100] * len(part)
        return {"input_ids": ids, "labels": labels, "length": len(ids)}

    clock = Clock()
    table = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "hf"))
    table = table.map(encode, remove_columns=table.column_names, num_proc=options.processes)
    table = table.filter(lambda length: length <= options.length, input_columns="length")
    tokenised = clock.read()
    clock = Clock()
    lengths = np.array(table["length"])
    rows, rest = [], []
    for start in range(0, len(lengths), 1000):
        chunk = [*rest, *((index, int(lengths[index])) for index in range(start, min(start + 1000, len(lengths))))]
        bins = binpacking.to_constant_volume(chunk, options.length, weight_pos=1)
        rows += bins[:-1]
        rest = bins[-1]
    rows.append(rest)
    return result("usual", len(lengths), lengths, len(rows), tokenised, clock.read(), options)


def pieces(messages):
    """ChatML in pieces of equal loss: what precedes an answer, and the answer."""
    text = ""
    for message in messages:
        if message["role"] == "assistant":
            yield text + "<|im_start|>assistant\n", False
            yield message["content"] + "<|im_end|>\n", True
            text = ""
        else:
            text += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"


def result(name, count, lengths, num_rows, tokenised, packed, options):
    return {
        "way": name,
        "rows": count,
        "tokens": int(lengths.sum()),
        "tokenising": tokenised,
        "packing": packed,
        "rows_per_cpu_second": round(count / (tokenised["cpu_s"] + packed["cpu_s"])),
        "packed_rows": num_rows,
        "fill": round(float(lengths.sum() / (num_rows * options.length)), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder with the tokenizer")
    parser.add_argument("data", type=Path, help="JSON lines of messages")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(options.data, folder / "rows.jsonl", options.rows)
        for way in (ours, usual):
            print(json.dumps(way(folder / "rows.jsonl", tokenizer, folder, options)), flush=True)


if __name__ == "__main__":
    main()
