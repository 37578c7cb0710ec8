"""Uploads to a Hub, from an export and from training, as processes: huggingface_hub reads its environment at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect
from tests.support.checkpoint.fake_hub import TOKEN, fake_hub
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run


def program(task: str, hub_url: str, token: str, **given: object) -> subprocess.CompletedProcess[str]:
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    path = os.pathsep.join(part for part in sys.path if part)
    hub = {"HF_ENDPOINT": hub_url, "HF_TOKEN": token, "HF_TOKEN_PATH": "/nonexistent"}
    environment = os.environ | {"PYTHONPATH": path} | hub
    command = [sys.executable, "-m", "megatron_trainer", task, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


UPLOAD = {"push_to_hub": "true", "hub_model_id": "me/it", "hub_private_repo": "true", "commit_message": "from a test"}


@effect("push_to_hub", "hub_model_id", "hub_private_repo", "commit_message")
@pytest.mark.dist
def test_an_export_is_uploaded_in_one_commit(model_root: Path, tmp_path: Path):
    source = tiny_model.make("llama", model_root)
    given = {"model": source, "to_hf": "true", "quant_method": "fp8", **UPLOAD}
    with fake_hub() as hub:
        refused = program("export", hub.url, "hf_wrong", output_dir=tmp_path / "refused", **given)
        assert refused.returncode == ExitCode.BAD_ARGUMENTS, refused.stderr
        assert "cannot create or open the repository me/it" in refused.stderr
        assert not (tmp_path / "refused").exists()
        done = program("export", hub.url, TOKEN, output_dir=tmp_path / "out", **given)
        assert done.returncode == 0, done.stderr
        assert f"uploaded: {hub.url}/me/it/commit/1" in done.stdout
    assert hub.created[0]["visibility"] == "private"
    assert hub.messages == ["from a test"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert hub.files == written


@pytest.mark.dist
def test_an_adapter_is_uploaded_at_the_end_of_training(model_root: Path, tmp_path: Path):
    source = tiny_model.make("llama", model_root)
    data = tiny_run.write_data(tmp_path / "rows.jsonl")
    given = tiny_run.arguments(source, data, tmp_path / "run", train_type="lora", train_iters=1, **UPLOAD)
    given |= {"dataset": data, "add_version": "false"}
    with fake_hub() as hub:
        without = program("sft", hub.url, "", **given)
        assert without.returncode == ExitCode.BAD_ARGUMENTS
        assert "pass HF_TOKEN to the pods from a Secret" in without.stderr
        done = program("sft", hub.url, TOKEN, **given)
        assert done.returncode == 0, done.stderr
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files.keys()
