"""Uploads to a Hub, from an export and from training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect
from tests.support.checkpoint.fake_hub import TOKEN, export_to, fake_hub, train_to
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist
UPLOAD = {"push_to_hub": True, "hub_model_id": "me/it", "hub_private_repo": True, "commit_message": "from a test"}


@effect("push_to_hub", "hub_model_id", "hub_private_repo", "commit_message")
def test_an_export_is_uploaded_in_one_commit(model_root: Path, tmp_path: Path):
    source = tiny_model.make("llama", model_root)
    given = {"model": str(source), "to_hf": True, "quant_method": "fp8", **UPLOAD}
    with fake_hub() as hub:
        [refused] = gloo_ranks(1).run(
            export_to, hub.url, "hf_wrong", {**given, "output_dir": str(tmp_path / "refused")}
        )
        assert refused.exit_code == ExitCode.BAD_ARGUMENTS, refused.message
        assert "cannot create or open the repository me/it" in refused.message
        assert not (tmp_path / "refused").exists()
        [done] = gloo_ranks(1).run(export_to, hub.url, TOKEN, {**given, "output_dir": str(tmp_path / "out")})
        assert done.exit_code == 0, done.message
        assert f"uploaded: {hub.url}/me/it/commit/1" in done.told
    assert hub.created[0]["visibility"] == "private"
    assert hub.messages == ["from a test"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert hub.files == written


@pytest.mark.slow
def test_an_adapter_is_uploaded_at_the_end_of_training(llama: Path, data: Path, tmp_path: Path):
    given = tiny_run.arguments(llama, data, tmp_path / "run", train_type="lora", train_iters=1, **UPLOAD)
    with fake_hub() as hub:
        [without] = gloo_ranks(1).run(train_to, hub.url, "", given)
        assert without.exit_code == ExitCode.BAD_ARGUMENTS
        assert "pass HF_TOKEN to the pods from a Secret" in without.message
        [done] = gloo_ranks(1).run(train_to, hub.url, TOKEN, given)
        assert done.exit_code == 0, done.message
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files.keys()


@pytest.mark.slow
def test_the_model_beside_the_last_checkpoint_is_uploaded_where_there_is_no_other(llama, data, tmp_path):
    given = tiny_run.arguments(llama, data, tmp_path / "run", save_safetensors=True, train_iters=1, **UPLOAD)
    beside = tmp_path / "run" / "safetensors" / "iter_0000001"
    with fake_hub() as hub:
        [done] = gloo_ranks(1).run(train_to, hub.url, TOKEN, given)
        assert done.exit_code == 0, done.message
        written = {path.name: path.read_bytes() for path in beside.iterdir()}
        assert hub.files == written
        shutil.rmtree(beside)
        [again] = gloo_ranks(1).run(train_to, hub.url, TOKEN, given, {"resume": "Required", "attempt": 1})
    assert again.exit_code == 0, again.message
    assert {path.name: path.read_bytes() for path in beside.iterdir()} == written
    assert not (tmp_path / "run" / "hf").exists()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_or_not_now_is_worth_a_restart(llama: Path, data: Path, tmp_path: Path):
    given = tiny_run.arguments(llama, data, tmp_path / "run", to_hf=True, train_iters=1, **UPLOAD)
    with fake_hub() as hub:
        hub.broken = ("/api/repos/create", 500)
        [down] = gloo_ranks(1).run(train_to, hub.url, TOKEN, given)
    [gone, other] = gloo_ranks(2).run(train_to, "http://127.0.0.1:9", TOKEN, given)
    for run in (down, gone, other):
        assert run.exit_code == ExitCode.ERROR
        assert run.message.startswith("cannot create or open the repository me/it (")
    assert not list((tmp_path / "run").glob("iter_*")), "nothing was trained"


@pytest.mark.slow
def test_a_failed_upload_keeps_the_export_and_is_made_up_for_by_a_restart(llama: Path, data: Path, tmp_path: Path):
    given = tiny_run.arguments(llama, data, tmp_path / "run", to_hf=True, train_iters=1, **UPLOAD)
    with fake_hub() as hub:
        hub.broken = ("/commit/", 400)
        [failed] = gloo_ranks(1).run(train_to, hub.url, TOKEN, given)
        written = {path.name: path.read_bytes() for path in (tmp_path / "run" / "hf").iterdir()}
        assert failed.exit_code == ExitCode.ERROR
        assert failed.message.startswith(f"upload of {tmp_path}/run/hf to me/it: ")
        assert "model.safetensors" in written
        hub.broken = None
        [done] = gloo_ranks(1).run(train_to, hub.url, TOKEN, given, {"resume": "Required", "attempt": 1})
    assert done.exit_code == 0, done.message
    assert hub.files == written
    assert TOKEN not in failed.message
