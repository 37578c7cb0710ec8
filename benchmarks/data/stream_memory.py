"""Resident memory while a large file is streamed: read, tokenized, packed and collated as in training.

    python benchmarks/data/stream_memory.py MODEL_DIR ROWS.jsonl [--gigabytes 1] [--length 4096] [--window 1000]

Writes a file of that size from the rows of ROWS.jsonl (their answers joined to texts of mixed length), then takes every
micro-batch of one epoch from it, as a rank does that has a loader process. Memory is sampled over this process and that
one; growth is what came on top of the first micro-batch, when all imports are done and the first window is in memory.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "trainer"))

from megatron_trainer.data.collate import RowShape
from megatron_trainer.data.loader import micro_batches
from megatron_trainer.data.prepare import prepare
from megatron_trainer.data.streaming.items import StreamSampler
from megatron_trainjob.args.tree import TrainArgs

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
BATCHES_BETWEEN_SAMPLES = 20


def write_rows(source: Path, target: Path, size_bytes: int) -> int:
    """The number of rows that were written."""
    texts = [json.loads(line)["messages"][-1]["content"] for line in source.read_text().splitlines()]
    chance, count = random.Random(0), 0
    with target.open("w") as stream:
        while stream.tell() < size_bytes:
            answer = "\n".join(chance.choices(texts, k=min(30, int(chance.lognormvariate(1.0, 1.0)) + 1)))
            turns = [{"role": "user", "content": f"Question {count}"}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": turns}) + "\n")
            count += 1
    return count


def resident_bytes() -> int:
    """Of this process and its children; pages that they share count for each, so that the sum is an upper bound."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in [str(own), *children]) * PAGE_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--window", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jsonl"
        count = write_rows(options.rows, path, int(options.gigabytes * 1e9))
        args = TrainArgs(
            dataset=(str(path),), streaming=True, packing=True, shuffle_buffer_size=options.window, max_epochs=1
        )
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        given = {"task": "sft", "max_length": options.length, "save": Path(folder), "is_first_rank": True}
        stream = prepare(args, tokenizer, **given).train
        sampler = StreamSampler(micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1, num_epochs=1)
        started, at_first, most, tokens, samples, rows = time.monotonic(), 0, 0, 0, 0, 0
        for rows, batch in enumerate(micro_batches(stream, sampler, shape=RowShape(pad_id=0), num_workers=1), 1):
            tokens, samples = tokens + batch.num_tokens, samples + batch.num_samples
            if rows % BATCHES_BETWEEN_SAMPLES == 1:
                most = max(most, resident_bytes())
                at_first = at_first or most
        result = {
            "file_bytes": path.stat().st_size,
            "rows_written": count,
            "samples_read": samples,
            "tokens": tokens,
            "packed_rows": rows,
            "fill": round(tokens / rows / options.length, 4),
            "seconds": round(time.monotonic() - started),
            "resident_at_first_batch_mb": round(at_first / 1e6),
            "resident_growth_mb": round((most - at_first) / 1e6),
        }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
