"""`mtj from-args` in a test: what it writes for a command or for a file of one, and the job that this is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job

RUN = "--model /m --dataset /d/x.jsonl"
LENGTH = "--train_iters 3 --global_batch_size 96"


def saved(folder: Path, text: str, name: str = "train.sh") -> str:
    """Writes a file and returns its path as a word."""
    (folder / name).write_text(text)
    return str(folder / name)


def written(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Standard output of the command, or what it says of a source that it cannot translate."""
    assert main(["from-args", *words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def spec_of(text: str) -> dict[str, Any]:
    """The spec of the one valid manifest."""
    found = yaml.safe_load(text)
    assert isinstance(manifest.parse(found), Job), manifest.parse(found)
    return found["spec"]
