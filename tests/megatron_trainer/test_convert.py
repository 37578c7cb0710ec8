"""Loading and saving Hugging Face directories: exact both ways, in shards, with everything a directory needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_trainer.convert.save import bytes_of
from tests.support.models import tiny_model
from tests.support.ranks import conversion
from tests.support.ranks.pool import gloo_ranks

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        pytest.param("llama", {}, 1, marks=pytest.mark.slow),
        ("llama_tied", TP2, 2),
        pytest.param("qwen2_odd", PP2, 2, marks=pytest.mark.slow),
        ("qwen2_moe", {"expert_model_parallel_size": 2}, 2),
    ],
    ids=["llama", "tied", "padded", "experts"],
)
def test_a_bfloat16_model_comes_out_bit_by_bit_as_it_went_in(
    name: str, settings: dict[str, Any], size: int, model_root: Path, tmp_path: Path
):
    source = tiny_model.make(name, model_root, dtype="bfloat16")
    gloo_ranks(size).run(conversion.convert, source, tmp_path / "hf", settings)
    assert_equal_weights(source, tmp_path / "hf")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.dist
def test_an_export_is_a_whole_model_directory(llama: Path, tmp_path: Path):
    gloo_ranks(1).run(conversion.convert, llama, tmp_path / "hf", {})
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "model.safetensors.index.json" not in names
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template == tiny_model.CHAT_TEMPLATE
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llama"
    assert list(tmp_path.iterdir()) == [tmp_path / "hf"]


@pytest.mark.dist
def test_a_large_model_is_written_in_numbered_files_with_an_index(llama: Path, tmp_path: Path):
    gloo_ranks(2).run(conversion.convert, llama, tmp_path / "hf", PP2, max_shard_size="200KB")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "hf" / file, framework="pt") as opened:
            assert name in set(opened.keys())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in weights(llama).values())
    assert_equal_weights(llama, tmp_path / "hf")
    gloo_ranks(1).run(conversion.convert, tmp_path / "hf", tmp_path / "again", {})
    assert_equal_weights(llama, tmp_path / "again")


@pytest.mark.dist
def test_an_export_can_be_narrowed_and_says_so(model_root: Path, tmp_path: Path):
    """The balance of experts stays float32: transformers keeps it so too."""
    source = tiny_model.make("deepseek_v3", model_root)
    gloo_ranks(1).run(conversion.convert, source, tmp_path / "hf", {}, dtype="bfloat16")
    written = weights(tmp_path / "hf")
    for name, tensor in weights(source).items():
        dtype = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
        assert torch.equal(written[name], tensor.to(dtype)), name
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.dist
def test_an_existing_directory_is_replaced_as_a_whole(llama: Path, tmp_path: Path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "old").touch()
    gloo_ranks(1).run(conversion.convert, llama, tmp_path / "hf", {})
    assert not (tmp_path / "hf" / "old").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "hf"]


def changed(source: Path, folder: Path, change: Any) -> Path:
    """A copy of a model directory with other weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("gradients", "*.pt"))
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors")
    return folder


@pytest.mark.dist
@pytest.mark.parametrize("settings", [PP2, pytest.param(TP2, marks=pytest.mark.slow)], ids=["pp2", "tp2"])
def test_tensors_that_do_not_fit_the_model_are_named_on_every_rank(settings: Any, llama: Path, tmp_path: Path):
    """One is missing in the second stage, one has another shape in the first, one belongs to nothing."""

    def break_it(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del stored["model.layers.3.self_attn.k_proj.weight"]
        stored["model.layers.0.mlp.down_proj.weight"] = torch.zeros(64, 126)
        stored["model.layers.0.mlp.extra.weight"] = torch.zeros(2)
        return stored

    directory = changed(llama, tmp_path / "broken", break_it)
    told = gloo_ranks(2).run(conversion.refusal, directory, settings)
    assert told[0] == told[1]
    missing, misshapen, left_over = told[0]
    assert missing == "1 tensors that the model needs are missing: model.layers.3.self_attn.k_proj.weight"
    assert "model.layers.0.mlp.down_proj.weight" in misshapen
    assert "[64, 126]" in misshapen
    assert left_over.endswith("model.layers.0.mlp.extra.weight")


@pytest.mark.dist
def test_an_untied_model_without_an_output_layer_is_refused(llama: Path, tmp_path: Path):
    directory = changed(llama, tmp_path / "broken", lambda stored: {n: t for n, t in stored.items() if "head" not in n})
    (told,) = gloo_ranks(1).run(conversion.refusal, directory, {})
    assert told == ["1 tensors that the model needs are missing: lm_head.weight"]


@pytest.mark.dist
def test_a_tied_model_may_carry_a_copy_of_its_output_layer(model_root: Path, tmp_path: Path):
    tied = tiny_model.make("llama_tied", model_root)
    directory = changed(
        tied, tmp_path / "copy", lambda stored: {**stored, "lm_head.weight": stored["model.embed_tokens.weight"] + 0}
    )
    assert gloo_ranks(1).run(conversion.refusal, directory, {}) == [[]]


@pytest.mark.dist
def test_a_tied_model_with_another_output_layer_is_refused(model_root: Path, tmp_path: Path):
    """transformers does not tie them then, and a run would train another model than it generates with."""
    tied = tiny_model.make("llama_tied", model_root)
    directory = changed(
        tied, tmp_path / "other", lambda stored: {**stored, "lm_head.weight": stored["model.embed_tokens.weight"] * 2}
    )
    ((found,),) = gloo_ranks(1).run(conversion.refusal, directory, {})
    assert "lm_head.weight is another than model.embed_tokens.weight" in found
    assert "set tie_word_embeddings to false" in found


@pytest.mark.dist
def test_extra_prediction_layers_are_passed_by_and_copied_into_the_export(model_root: Path, tmp_path: Path):
    """Real DeepSeek-V3 checkpoints hold a layer after the last one, for predicting two tokens at once."""
    extra = {"model.layers.4.eh_proj.weight": torch.randn(64, 128)}
    directory = changed(
        tiny_model.make("deepseek_v3", model_root), tmp_path / "extra", lambda stored: {**stored, **extra}
    )
    gloo_ranks(2).run(conversion.convert, directory, tmp_path / "hf", PP2)
    assert_equal_weights(directory, tmp_path / "hf")


@pytest.mark.dist
def test_new_tokens_start_as_the_mean_of_the_known_ones(llama: Path):
    (embedding,) = gloo_ranks(1).run(conversion.grown, llama, tiny_model.VOCAB_SIZE + 2)
    stored = weights(llama)["model.embed_tokens.weight"]
    assert torch.equal(embedding[: tiny_model.VOCAB_SIZE], stored)
    assert torch.allclose(embedding[tiny_model.VOCAB_SIZE :], stored.mean(0).expand(2, -1))


@pytest.mark.dist
@pytest.mark.parametrize(
    "name",
    [
        "llama_bias",
        pytest.param("glm4", marks=pytest.mark.slow),
        pytest.param("qwen2_moe", marks=pytest.mark.slow),
        "deepseek_v3",
    ],
)
def test_a_distributed_checkpoint_holds_every_weight_and_fits_other_layouts(
    name: str, model_root: Path, tmp_path: Path
):
    """Norms after blocks, biases, experts and latent attention are modules of ours; none may be left out."""
    source = tiny_model.make(name, model_root)
    split = {**TP2, "sequence_parallel": True, "expert_tensor_parallel_size": 1}
    target = tmp_path / "checkpoint"
    target.mkdir()
    gloo_ranks(2).run(conversion.save_sharded, source, target, split)
    for settings, size in (({}, 1), (PP2, 2)):
        (found, *_) = gloo_ranks(size).run(conversion.load_sharded, source, target, settings)
        expected = weights(source)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("qwen2_odd", TP2, marks=pytest.mark.slow),
        pytest.param("llama", PP2, marks=pytest.mark.slow),
        ("qwen2_moe", EP2),
    ],
    ids=["tp2", "pp2", "ep2"],
)
def test_weights_drawn_from_nothing_are_the_same_in_every_layout(name: str, settings: Any, model_root: Path):
    directory = tiny_model.make(name, model_root)
    (expected,) = gloo_ranks(1).run(conversion.drawn, directory, {})
    assert expected.keys() == weights(directory).keys()
    for found in gloo_ranks(2).run(conversion.drawn, directory, settings):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.dist
def test_drawn_weights_have_the_spread_that_the_model_wants(llama: Path):
    """0.02 for matrices; 0.02 / sqrt(2 * 4 layers) = 0.00707 into the residual stream; norms are one.

    Four standard errors of the sample's deviation: 4 * 0.02 / sqrt(2 * 4096) is 5 percent.
    """
    (found,) = gloo_ranks(1).run(conversion.drawn, llama, {})
    assert float(found["model.layers.0.self_attn.q_proj.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(found["model.layers.0.self_attn.o_proj.weight"].std()) == pytest.approx(0.00707, rel=0.05)
    assert torch.equal(found["model.norm.weight"], torch.ones(64))


@pytest.mark.dist
def test_loading_holds_no_more_than_one_tensor_beyond_the_model(llama: Path):
    """Parts are read out of the mapped file; only what is put together of several is there once beside the model."""
    ((peak, largest),) = gloo_ranks(1).run(conversion.peak_of_loading, llama)
    assert 0 < peak <= largest


@pytest.mark.dist
def test_a_target_that_cannot_be_written_fails_on_every_rank(llama: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    told = gloo_ranks(2).run(conversion.unwritable, llama, tmp_path / "file" / "hf", TP2)
    assert told[0] == told[1]
    assert told[0].startswith("OUTPUT_NOT_WRITABLE could not write")


@pytest.mark.parametrize(
    ("text", "number"), [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("1.5kb", 1500), ("7", 7)]
)
def test_sizes_are_read_with_decimal_and_binary_units(text: str, number: int):
    assert bytes_of(text) == number


@pytest.mark.parametrize("text", ["", "5 gallons", "GB", "-1GB"])
def test_other_sizes_are_refused(text: str):
    with pytest.raises(ValueError, match="a size is a number with KB"):
        bytes_of(text)
