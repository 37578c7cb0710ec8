"""`mtj run` in a folder of its own: the real command, and a small program in place of the trainer.

The program counts steps, saves every fifth and continues from there. Where a signal is sent, `mtj run` is a process of
its own, and the program pauses so that the signal meets it at a known step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from megatron_operator.cli import main
from tests.support.operator.job_values import raw, write_model_header, write_tokenizer
from tests.support.processes import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tests" / "support" / "checkpoint" / "counting_program.py"
MODEL = {"model_type": "llama", "num_hidden_layers": 2}
SHORT_GRACE = {"spec": {"terminationGracePeriodSeconds": 0}}


class LocalRun:
    """One `mtj run` in the working directory, which holds its model, its data and its state."""

    @classmethod
    def within(cls, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Self:
        """A run in this folder, which becomes the working directory."""
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "200")
        return cls(folder, capsys)

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(MODEL))
        write_model_header(folder / "model", MODEL)
        write_tokenizer(folder / "model")
        (folder / "train.jsonl").write_text("")
        self.state = folder / ".mtj" / "tune"

    def write(self, *options: object, nodes: int = 1, **spec: Any) -> Self:
        """Writes the manifest of a job whose containers run the program with these options."""
        arguments = {"model": "./model", "dataset": ["./train.jsonl"], "train_iters": 20}
        manifest = raw(
            {
                "args": arguments,
                "numNodes": nodes,
                "command": ["python", str(PROGRAM), "/checkpoints/tune", *map(str, options)],
                "failurePolicy": {"backoffSeconds": {"initial": 0}, **spec.pop("failurePolicy", {})},
                "checkpoint": {"pvc": {"claimName": "disk"}, "onTermination": {"gracePeriodSeconds": 5}},
                **spec,
            }
        )
        for given_by_a_server in ("uid", "generation"):
            del manifest["metadata"][given_by_a_server]
        (self.folder / "job.yaml").write_text(yaml.safe_dump(manifest))
        return self

    def start(self) -> subprocess.Popen[str]:
        """`mtj run` as a process of its own."""
        paths = [str(ROOT / part) for part in ("operator", "trainer")]
        code = "import sys; from megatron_operator.cli import main; sys.exit(main(['run', 'job.yaml']))"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str] | None = None, *, again: bool = False) -> tuple[int, str]:
        """(exit code, output) of a started process, or of a run in this one."""
        if process is None:
            self.capsys.readouterr()
            code = main(["run", "job.yaml", *(["--again"] if again else [])])
            return code, "".join(self.capsys.readouterr())
        output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    def go(self) -> None:
        """Lets a pausing program go on."""
        (self.state / "volumes" / "disk" / "tune" / "go").touch()

    @property
    def status(self) -> dict[str, Any]:
        """The job's status as the folder has it."""
        return yaml.safe_load((self.state / "status.yaml").read_text())

    def steps(self, rank: int = 0) -> int:
        """How many steps the newest checkpoint of this rank has."""
        return int((self.state / "volumes" / "disk" / "tune" / f"checkpoint-{rank}").read_text())

    def process_of(self, pod: str) -> int:
        """The number of the process that is this pod."""
        return json.loads((self.state / "pods" / pod / "process.json").read_text())["identity"]["pid"]

    def wait_for_pause(self, nodes: int = 1) -> None:
        """Until every pod stalls at its step, and mtj has written down that the gang is complete."""
        folder = self.state / "volumes" / "disk" / "tune"
        wait_for(lambda: all((folder / f"paused-{rank}").exists() for rank in range(nodes)))
        wait_for(lambda: (self.state / "status.yaml").exists() and self.status["phase"] == "Running")
