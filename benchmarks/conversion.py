"""Rates and peak memory of conversion on a random Llama of over 1 GB, beside the raw rates of the same bytes.

The model is also read as it may be published: in FP8 with scales of 128 x 128 blocks, and as pytorch_model.bin.
Rates are those of the bfloat16 model, whatever it is stored as.

usage: python benchmarks/conversion.py [FOLDER] [--layers 10]      (FOLDER takes the model and the results, about 4 GB)

Memory is what the process holds of its own (RssAnon), sampled while a stage runs: the pages of a mapped file are not
counted, the system takes them back at will.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONFIG = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
BLOCK = 128
CHUNK_BYTES = 16 * 2**20
SAMPLE_S = 0.002


@dataclass
class Stage:
    """What a stage cost. extra_bytes: the most it held beyond what was held before or after it, whichever is more."""

    seconds: float = 0.0
    extra_bytes: int = 0


def main() -> None:
    """Prints a table for benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--layers", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        _measure(Path(folder), given.layers)


def _measure(folder: Path, num_layers: int) -> None:
    from megatron_trainer import backend as backends

    backend = backends.select()
    backend.install()
    from megatron_trainer import parallel
    from megatron_trainer.checkpoint import load as checkpoint_load
    from megatron_trainer.convert.export import Loaded, engine_of, write_checkpoint
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.convert.save import save_model
    from megatron_trainer.convert.stream import own_data
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs
    from megatron_trainjob.checkpoint_folder import inspect

    where = {"master_address": "", "master_port": 0, "timeout_s": 600, "store": dist.HashStore()}
    parallel.join(backend, rank=0, world_size=1, **where)
    file = _make_model(folder / "model", num_layers) / "model.safetensors"
    args = TrainArgs(model=str(file.parent), recompute_granularity="none")
    parallel.initialize(args)
    spec = read_model(file.parent, args)
    chunks = build_model(spec, args, backend)
    model = Loaded(chunks=chunks, spec=spec, args=args, read=own_data)
    written = folder / "mcore" / "iter_0000001"
    size = file.stat().st_size
    fp8, pickled = _in_fp8(file.parent, folder / "fp8"), _pickled(file.parent, folder / "bin")
    for stored in (file, fp8 / file.name, pickled / "pytorch_model.bin"):
        _read(stored)  # into the page cache
    stages = {
        "raw read": _timed(lambda: _read(file)),
        "raw read into fresh memory": _timed(lambda: _read(file, torch.empty(size, dtype=torch.uint8).numpy())),
        "Hugging Face folder -> model": _timed(lambda: load_weights(chunks, spec)),
        "FP8 folder -> model": _timed(lambda: load_weights(chunks, replace(spec, directory=fp8))),
        "pytorch_model.bin -> model": _timed(lambda: load_weights(chunks, replace(spec, directory=pickled))),
        "raw write": _timed(lambda: _write(folder / "raw", size)),
        "model -> Hugging Face folder": _timed(lambda: save_model(chunks, spec, folder / "hf")),
        "model -> Megatron-Core checkpoint": _timed(lambda: write_checkpoint(args, model, backend, folder / "mcore")),
        "Megatron-Core checkpoint -> model": _timed(
            lambda: checkpoint_load.read_part(engine_of(chunks), inspect(written), "base")
        ),
    }
    _show(stages, size, max(p.numel() * p.element_size() for p in chunks[0].parameters()))


def _show(stages: dict[str, Stage], size: int, largest: int) -> None:
    print(f"model: {size / 1e9:.2f} GB in bfloat16, largest parameter {largest / 1e6:.0f} MB\n")
    print("| stage | GB/s | share of raw | extra memory, MB | in largest parameters |\n|---|---|---|---|---|")
    for name, stage in stages.items():
        raw = stages["raw write" if name.startswith(("model", "raw write")) else "raw read"]
        share, tensors = raw.seconds / stage.seconds, stage.extra_bytes / largest
        rate = size / stage.seconds / 1e9
        print(f"| {name} | {rate:.2f} | {share:.2f} | {stage.extra_bytes / 1e6:.0f} | {tensors:.2f} |")


def _make_model(directory: Path, num_layers: int) -> Path:
    """A Llama with random bfloat16 weights, written by transformers."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**CONFIG, num_hidden_layers=num_layers, dtype="bfloat16")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory, max_shard_size="100GB")
    return directory


def _in_fp8(source: Path, target: Path) -> Path:
    """The same model with the linears of its layers in FP8; how well they are rounded does not matter here."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj." in name:
            scales = torch.full([-(-size // BLOCK) for size in tensor.shape], 1e-3)
            tensors |= {name: (tensor.float() / 1e-3).to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
        else:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors")
    how = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    config = {**json.loads((source / "config.json").read_text()), "quantization_config": how}
    (target / "config.json").write_text(json.dumps(config))
    return target


def _pickled(source: Path, target: Path) -> Path:
    """The same model as torch.save writes it."""
    from safetensors.torch import load_file

    target.mkdir()
    torch.save(load_file(source / "model.safetensors"), target / "pytorch_model.bin")
    (target / "config.json").write_text((source / "config.json").read_text())
    return target


def _timed(action: Callable[[], Any]) -> Stage:
    stage = Stage()
    with _watching(stage):
        started = time.perf_counter()
        action()
        stage.seconds = time.perf_counter() - started
    return stage


@contextmanager
def _watching(stage: Stage) -> Iterator[None]:
    """Samples this process's own memory from another thread."""
    before = peak = _held_bytes()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, _held_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    stage.extra_bytes = max(0, peak - max(before, _held_bytes()))


def _held_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this kernel does not say RssAnon")


def _read(path: Path, whole: Any = None) -> None:
    """Reads the file over and over into one small buffer, or once into memory that no one has touched."""
    buffer = memoryview(bytearray(CHUNK_BYTES) if whole is None else whole)
    place = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer[place : place + CHUNK_BYTES]):
            place += 0 if whole is None else count


def _write(path: Path, size: int) -> None:
    data = bytes(CHUNK_BYTES)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // CHUNK_BYTES):
            file.write(data)
    path.unlink()


if __name__ == "__main__":
    main()
