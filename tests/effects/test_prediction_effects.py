"""Effects of multi-token prediction on whole runs: trained, saved, resumed in another layout, exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.effects.registry import effect
from tests.support.models import prediction_model
from tests.support.ranks import tiny_run
from tests.support.ranks.exporting import export

pytestmark = pytest.mark.dist
PACKED = {"packing": True, "max_length": 96, "global_batch_size": 2}


@effect("mtp_num_layers")
@pytest.mark.parametrize("name", ["deepseek_v3", pytest.param("qwen3_next", marks=pytest.mark.slow)])
def test_a_run_trains_saves_resumes_and_exports_the_layers(name: str, model_root: Path, tmp_path: Path):
    """The checkpoint of two stages goes on with one, and the export has the trained layers and equal copies."""
    model = prediction_model.make(name, model_root, number=1)
    data = tiny_run.write_data(tmp_path / "rows.jsonl")
    common = {"mtp_num_layers": 1, "train_iters": 4, "save_interval": 2, **PACKED}
    whole = tiny_run.train(tiny_run.arguments(model, data, tmp_path / "whole", to_hf=True, **common))
    assert whole.exit_code == 0, whole.message
    first = {**common, "train_iters": 2, "lr_decay_iters": 4, "pipeline_model_parallel_size": 2}
    begun = tiny_run.train(tiny_run.arguments(model, data, tmp_path / "part", **first), ranks=2)
    assert begun.exit_code == 0, begun.message
    resumed = tiny_run.arguments(model, data, tmp_path / "part", load=str(tmp_path / "part"), to_hf=True, **common)
    ended = tiny_run.train(resumed)
    assert ended.exit_code == 0, ended.message
    for loss in ("lm loss", "mtp_1 loss"):
        assert ended.column(loss)[-2:] == pytest.approx(whole.column(loss)[-2:], abs=2e-4)
        assert whole.column(loss)[-1] < whole.column(loss)[0]
    stored, written = load_file(model / "model.safetensors"), ended.weights()
    assert written.keys() == stored.keys()
    if not prediction_model.is_beside(name):
        assert torch.equal(written["model.layers.4.shared_head.head.weight"], written["lm_head.weight"])
        assert torch.equal(written["model.layers.4.embed_tokens.weight"], written["model.embed_tokens.weight"])
    projection = f"{prediction_model.part_of(name, 4, 'eh_proj')}.weight"
    assert not torch.equal(written[projection], stored[projection])
    target = tmp_path / "exported"
    exported = export(mcore_model=tmp_path / "part", to_hf=True, output_dir=target)
    assert exported.exit_code == 0, exported.message
    again = load_file(target / "model.safetensors")
    assert all(torch.equal(again[key], tensor) for key, tensor in written.items())


@pytest.mark.slow
def test_lora_trains_the_layers_into_a_merged_model(model_root: Path, tmp_path: Path):
    model = prediction_model.make("glm4_moe", model_root, number=1)
    data = tiny_run.write_data(tmp_path / "rows.jsonl")
    given = {"mtp_num_layers": 1, "train_iters": 2, "train_type": "lora", "merge_lora": True, "packing": True}
    run = tiny_run.train(tiny_run.arguments(model, data, tmp_path / "out", max_length=96, **given))
    assert run.exit_code == 0, run.message
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("model.safetensors")}
    stored, written = load_file(model / "model.safetensors"), load_file(folder / "model.safetensors")
    changed = {name for name, tensor in stored.items() if not torch.equal(tensor, written[name])}
    assert {"model.layers.4.eh_proj.weight", "model.layers.4.self_attn.q_proj.weight"} <= changed
    assert "lm_head.weight" not in changed


@effect("mtp_loss_scaling_factor")
def test_the_factor_weighs_the_later_tokens(model_root: Path, tmp_path: Path):
    """Without weight the decoder learns as without these layers; with weight their loss falls faster."""
    model = prediction_model.make("glm4_moe", model_root, number=1)
    data = tiny_run.write_data(tmp_path / "rows.jsonl")

    def run(name: str, **given: object) -> tiny_run.TinyRun:
        found = tiny_run.train(tiny_run.arguments(model, data, tmp_path / name, **PACKED, **given))
        assert found.exit_code == 0, found.message
        return found

    plain = run("plain")
    unweighted = run("unweighted", mtp_num_layers=1, mtp_loss_scaling_factor=0.0)
    weighted = run("weighted", mtp_num_layers=1, mtp_loss_scaling_factor=1.0)
    assert unweighted.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=1e-6)
    assert weighted.column("mtp_1 loss")[0] == pytest.approx(unweighted.column("mtp_1 loss")[0], abs=1e-6)
    assert weighted.column("mtp_1 loss")[-1] < unweighted.column("mtp_1 loss")[-1] - 1e-3
