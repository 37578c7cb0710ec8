"""Metrics of preference training as TensorBoard and Weights & Biases read them back, beside logging.jsonl."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.data import preference_data
from tests.support.ranks import tiny_run

pytestmark = [pytest.mark.dist, pytest.mark.slow]

METRICS = (
    "loss",
    *(f"{kind}/{side}" for kind in ("rewards", "logps", "logits") for side in ("chosen", "rejected")),
    "rewards/margins",
    "rewards/accuracies",
)
STEPS = 4
BLOCK = 32768


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory) -> tiny_run.TinyRun:
    """A run of the program with both reports, offline."""
    pytest.importorskip("wandb")
    root = tmp_path_factory.mktemp("metrics")
    data = preference_data.write(root / "pairs.jsonl", 16)
    given = {"val_dataset": [str(data)], "eval_iters": 1, "eval_interval": 2, "tensorboard_log_interval": 1}
    reports = {"wandb_project": "pairs", "wandb_exp_name": "first"}
    mapping = tiny_run.arguments(llama, data, root / "run", train_iters=STEPS, **given, **reports)
    (root / "config.yaml").write_text(yaml.safe_dump(mapping))
    own = {"NPROC_PER_NODE": "1", "MTJ_DEVICE": "cpu", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    own["MTJ_TERMINATION_LOG"] = str(root / "failure")
    command = [sys.executable, "-m", "megatron_trainer", "rlhf", "--config", str(root / "config.yaml")]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tiny_run.read_run(root / "run")


def of_tensorboard(folder: Path) -> dict[str, list[float]]:
    """Values by tag, in the order of the steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [event.value for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def records(stored: bytes) -> Iterator[bytes]:
    """The records of an offline run's file: seven bytes, then blocks of LevelDB's log format.

    A piece has four bytes of checksum, two of length, one of type (1 whole, 2 first, 3 middle, 4 last).
    """
    place, parts = 7, b""
    while place + 7 <= len(stored):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
        length, kind = struct.unpack_from("<HB", stored, place + 4)
        parts += stored[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def of_weights_and_biases(path: Path) -> dict[str, list[float]]:
    """Values by name, in the order of the rows of history."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[float]] = {}
    for content in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        for item in record.history.item:
            value: Any = json.loads(item.value_json)
            if isinstance(value, int | float):
                found.setdefault(item.key or "/".join(item.nested_key), []).append(value)
    return found


def check(found: dict[str, list[float]], run: tiny_run.TinyRun) -> None:
    for name in METRICS:
        assert len(run.column(name)) == STEPS
        assert found[name] == pytest.approx(run.column(name), rel=1e-5), name
        held_out = f"eval_{name}"
        assert len(run.column(held_out)) == 2
        [tag] = [tag for tag in found if tag in (held_out, f"{name} validation")]
        assert found[tag] == pytest.approx(run.column(held_out), rel=1e-5), held_out


def test_tensorboard_reads_every_metric_back(run):
    check(of_tensorboard(run.folder / "runs"), run)


def test_weights_and_biases_reads_every_metric_back(run):
    [path] = run.folder.rglob("*.wandb")
    check(of_weights_and_biases(path), run)
