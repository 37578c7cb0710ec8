"""A rank that is killed and started again ends where one ends that was left alone, bit by bit, in every task.

SIGKILL comes at a random moment after the first checkpoint: while a step runs or while the next checkpoint is written.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.data import preference_data
from tests.support.models import classification_truth, retrieval_truth
from tests.support.ranks import tiny_run

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(300)]

STEPS, SAVED, WAIT_S = 24, 2, 120
LORA = {"train_type": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.1}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A task, and how its rows are written."""

    task: str
    rows: Any
    given: dict[str, Any] = field(default_factory=dict)


def _labels(path: Path) -> Path:
    return classification_truth.write(path, "single_label_classification")


def _texts(path: Path) -> Path:
    return retrieval_truth.write(path, retrieval_truth.triplets())


CLASSES = {"task_type": "seq_cls", "num_labels": 3}
KINDS = {
    "dpo": Kind(task="rlhf", rows=preference_data.write),
    "dpo lora": Kind(task="rlhf", rows=preference_data.write, given={**LORA, "packing": True, "packing_length": 256}),
    "dpo kept reference": Kind(task="rlhf", rows=preference_data.write, given={"precompute_ref_log_probs": True}),
    "kto": Kind(
        task="rlhf", rows=preference_data.write_singles, given={"rlhf_type": "kto", "micro_batch_size": 2, **LORA}
    ),
    "rm": Kind(task="rlhf", rows=preference_data.write, given={"rlhf_type": "rm"}),
    "classifier": Kind(task="sft", rows=_labels, given={**CLASSES, **LORA}),
    "embedding": Kind(task="sft", rows=_texts, given={"task_type": "embedding", "micro_batch_size": 2}),
}


def children(pid: int) -> list[int]:
    """The processes that a process has started, in depth."""
    try:
        own = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [child for one in own for child in (one, *children(one))]


def killed(mapping: dict[str, object], task: str, folder: Path) -> int:
    """Starts the program, kills its rank with SIGKILL after the first checkpoint, and gives the program's exit code."""
    save, config = Path(str(mapping["save"])), folder / "killed.yaml"
    config.write_text(yaml.safe_dump(mapping))
    own = {"NPROC_PER_NODE": "1", "MTJ_DEVICE": "cpu", "MTJ_TERMINATION_LOG": str(folder / "failure")}
    with (folder / "killed.log").open("w") as log:
        program = subprocess.Popen(
            [sys.executable, "-m", "megatron_trainer", task, "--config", str(config)],
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
        )
        try:
            _wait_for(save / f"iter_{SAVED:07d}", program)
            time.sleep(random.uniform(0, 0.5))
            for pid in children(program.pid):
                os.kill(pid, signal.SIGKILL)
            return program.wait(WAIT_S)
        finally:
            program.kill()


def _wait_for(path: Path, program: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + WAIT_S
    while not path.exists():
        assert program.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < ends, "no checkpoint came"
        time.sleep(0.005)


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        f"{path.parent.name} {name}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_run_ends_as_one_that_was_left_alone(name, llama, tmp_path):
    import torch

    kind = KINDS[name]
    data = kind.rows(tmp_path / "rows.jsonl")
    given = {"train_iters": STEPS, "save_interval": SAVED, "save_total_limit": 2, **kind.given}
    given |= {} if "train_type" in given else {"to_hf": True}
    mapping = tiny_run.arguments(llama, data, tmp_path / "killed", **given)
    assert killed(mapping, kind.task, tmp_path) == 128 + signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "killed").glob("iter_*"))
    assert f"iter_{STEPS:07d}" not in left, "killed too late to show anything"
    resumed = tiny_run.train(mapping, task=kind.task, resume="Auto", attempt=1)
    assert (resumed.exit_code, resumed.message) == (0, "")
    shutil.rmtree(tmp_path / "killed" / "data_cache")
    alone = tiny_run.train({**mapping, "save": str(tmp_path / "alone")}, task=kind.task)
    expected = {line["iteration"]: line["loss"] for line in alone.log if "loss" in line}
    found = {line["iteration"]: line["loss"] for line in resumed.log if "loss" in line}
    assert found == expected
    ours, theirs = tensors(resumed.folder), tensors(alone.folder)
    assert ours.keys() == theirs.keys()
    assert ours
    assert [key for key, tensor in ours.items() if not torch.equal(tensor, theirs[key])] == []
