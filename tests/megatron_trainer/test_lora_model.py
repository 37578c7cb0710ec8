"""What adapters do to a model besides being equal to PEFT's: start, dropout, reference, checkpoints, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.models import tiny_model
from tests.support.ranks import lora_behavior, lora_ranks, tiny_run
from tests.support.ranks.lora_ranks import LAYOUTS
from tests.support.ranks.pool import gloo_ranks

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


FULL_WEIGHTS = ("output_layer.weight", "embedding.word_embeddings.weight")


def model(root, name):
    return str(tiny_model.make(name, root))


def ranks(function, layout, *args, **given):
    size = 1 if layout == "TP1" else 2
    return gloo_ranks(size).run(function, *args, **{**LAYOUTS[layout], **given})


def adapter(root, name, **given):
    folder = root / f"adapter-{name}-{len(list(root.iterdir()))}"
    gloo_ranks(1).run(lora_ranks.make_adapter, model(root, name), str(folder), **given)
    return folder


def tensors(folder):
    path = folder / "adapter_model.safetensors"
    assert path.stat().st_mode & 0o777 == folder.stat().st_mode & 0o666, "who may look into the folder may read it"
    return load_file(path)


def test_new_adapters_change_nothing_and_are_the_same_in_every_layout(root):
    directory = model(root, "llama")
    (whole,) = ranks(lora_behavior.first_adapters, "TP1", directory)
    assert whole["same"]
    for layout in ("TP2", "PP2"):
        parts = ranks(lora_behavior.first_adapters, layout, directory)
        assert all(part["same"] for part in parts)
        for name, total in whole["sums"].items():
            held = [part["sums"][name] for part in parts if name in part["sums"]]
            is_split = layout == "TP2" and ("linear_proj" in name or "linear_fc2" in name)
            assert (sum(held) if is_split else held[0]) == pytest.approx(total, abs=1e-5)
            assert is_split or all(value == held[0] for value in held)


def test_only_adapters_train(root):
    (result,) = ranks(lora_behavior.first_adapters, "TP1", model(root, "llama"))
    assert len(result["trainable"]) == 4 * 4 * 2
    assert all(".lora." in name for name in result["trainable"])


@pytest.mark.parametrize("layout", ["TP1", pytest.param("TP2", marks=pytest.mark.slow), "TP2+SP"])
def test_dropout_changes_training_and_not_evaluation(root, layout):
    for result in ranks(lora_behavior.dropout, layout, model(root, "llama"), lora_dropout=0.5):
        first, second = result["training"]
        assert not torch.equal(first, second)
        assert torch.equal(*result["evaluation"])
        assert result["replicated"]


def test_the_reference_policy_is_the_base_model_bit_by_bit(root):
    given = {"modules_to_save": ("output_layer",), "lora_bias": "all"}
    (result,) = ranks(lora_behavior.reference_policy, "TP1", model(root, "llama_bias"), **given)
    assert result == {"is_base": True, "differs": True, "is_back": True}


def test_merging_twice_and_undoing_what_was_not_kept_are_errors(root):
    assert gloo_ranks(1).run(lora_behavior.merge_errors, model(root, "llama")) == [
        [
            "the originals of weights that train in full were not kept",
            "the adapters are already merged",
            "there are no weights from before a merge; merge with keep_originals",
        ]
    ]


@pytest.mark.parametrize("layout", [pytest.param("TP1", marks=pytest.mark.slow), "TP2+SP"])
def test_recomputed_layers_get_the_same_gradients_above_frozen_embeddings(root, layout):
    directory = model(root, "llama")
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    plain = ranks(lora_behavior.gradients, layout, directory, target_modules=("linear_fc2",))
    recomputed = ranks(lora_behavior.gradients, layout, directory, target_modules=("linear_fc2",), **full)
    for one, other in zip(plain, recomputed, strict=True):
        assert one.keys() == other.keys()
        assert all(gradient.abs().max() > 0 for gradient in one.values())
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "saved", "loaded", "given"),
    [
        pytest.param("llama", "TP2+SP", "TP1", {}, marks=pytest.mark.slow),
        ("llama", "TP2+SP", "PP2", {"modules_to_save": ("output_layer",)}),
        pytest.param("llama_tied", "PP2", "TP2", {"modules_to_save": ("word_embeddings",)}, marks=pytest.mark.slow),
        pytest.param(
            *("llama_bias", "TP1", "TP2", {"lora_bias": "all", "target_modules": ("all-linear", "all-embedding")}),
            marks=pytest.mark.slow,
        ),
        ("qwen3_moe", "EP2", "TP2+EP2+SP", {"target_modules": ("all-linear", "all-router")}),
        pytest.param("qwen3_moe", "TP1", "EP2", {}, marks=pytest.mark.slow),
        ("deepseek_v3", "TP2+EP2+SP", "PP2", {}),
    ],
    ids=str,
)
def test_checkpoints_hold_what_trains_and_load_in_another_layout(root, tmp_path, name, saved, loaded, given):
    directory = model(root, name)
    original = adapter(root, name, **given)
    keys = ranks(lora_behavior.save_sharded, saved, directory, str(original), str(tmp_path / "sharded"), **given)
    assert all(".lora." in key or key in FULL_WEIGHTS or key.endswith("bias") for key in set().union(*keys))
    untouched = ranks(
        lora_behavior.load_sharded, loaded, directory, str(tmp_path / "sharded"), str(tmp_path / "again"), **given
    )
    assert all(untouched)
    before, after = tensors(original), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


REFUSALS = {
    "split-experts": (
        "qwen3_moe",
        "TP2",
        {"sequence_parallel": True, "expert_tensor_parallel_size": 2},
        [("expert_tensor_parallel_size", "whole experts on each rank")],
    ),
    "names-in-another-stage-exist": ("llama", "PP2", {"target_modules": ("linear_qkv", "output_layer")}, []),
    "unknown-names": (
        "llama",
        "PP2",
        {"target_modules": ("linear_qkv", "q_proj", "all-router"), "modules_to_save": ("lm_head",)},
        [
            ("target_modules", "matches no module of this model (only mixture-of-experts models have routers)"),
            ("target_modules", "Hugging Face's q_proj is part of linear_qkv here"),
            ("modules_to_save", "Hugging Face's lm_head is part of output_layer here"),
        ],
    ),
    "unknown-regex": ("llama", "TP1", {"target_regex": "linear_qkv"}, [("target_regex", "matches no module")]),
    "tied-weights": (
        "llama_tied",
        "PP2",
        {"target_modules": ("output_layer", "all-embedding")},
        [
            ("target_modules", "the output layer shares this weight"),
            ("target_modules", "shares the weight of its word embeddings"),
        ],
    ),
    "adapted-and-saved": (
        "llama",
        "TP1",
        {"target_modules": ("output_layer",), "modules_to_save": ("output_layer",)},
        [("modules_to_save", "adapted and trained in full at once")],
    ),
    "no-biases": ("llama", "TP1", {"lora_bias": "all"}, [("lora_bias", "this model has no biases")]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_right_is_refused_on_all_ranks_with_the_reason(root, case):
    name, layout, given, expected = REFUSALS[case]
    for violations in ranks(lora_behavior.refusal, layout, model(root, name), **given):
        assert [argument for argument, _ in violations] == [argument for argument, _ in expected]
        assert all(part in message for (_, message), (_, part) in zip(violations, expected, strict=True))


def test_an_adapter_with_other_numbers_modules_or_separate_a_is_refused_with_the_reason(root):
    directory, made = model(root, "llama"), adapter(root, "llama")
    (messages,) = gloo_ranks(1).run(lora_behavior.load_refusal, directory, str(made), lora_rank=8)
    assert messages == ["adapter_config.json says r is 4, this run's adapters have 8; set lora_rank to 4"]
    (messages,) = gloo_ranks(1).run(lora_behavior.load_refusal, directory, str(made), target_modules=("linear_qkv",))
    assert "belong to no module that this run trains" in messages[0]
    assert "model.layers.*.mlp.down_proj.lora_A.weight" in messages[0]
    (messages,) = gloo_ranks(1).run(lora_behavior.load_refusal, directory, str(made), modules_to_save=("output_layer",))
    assert "tensors that this run trains are missing" in messages[0]
    gloo_ranks(1).run(lora_behavior.spoil_shared_a, str(made))
    for messages in gloo_ranks(2).run(lora_behavior.load_refusal, directory, str(made), pipeline_model_parallel_size=2):
        assert "adapters do not fit this run's" in messages[0]
        assert "q_proj.lora_A.weight and" in messages[0]
    (messages,) = gloo_ranks(1).run(lora_behavior.load_refusal, directory, str(root / "nowhere"))
    assert "holds no readable adapter_config.json" in messages[0]


def test_targets_are_named_as_briefly_as_is_exact(root):
    every = json.loads((adapter(root, "llama") / "adapter_config.json").read_text())["target_modules"]
    assert every == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    some = adapter(root, "llama", target_regex=r"decoder\.layers\.[13]\..*linear_proj|.*linear_fc2")
    assert json.loads((some / "adapter_config.json").read_text())["target_modules"] == [
        "down_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.3.self_attn.o_proj",
    ]


def test_virtual_stages_hold_the_same_adapters(root, tmp_path):
    given = {"target_regex": r"decoder\.layers\.[02]\..*", "modules_to_save": ("output_layer",)}
    made = adapter(root, "llama", **given)
    ranks(lora_behavior.written_again, "PP2", model(root, "llama"), str(made), str(tmp_path / "a"), **given)
    before, after = tensors(made), tensors(tmp_path / "a")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("layout", [pytest.param("TP1", marks=pytest.mark.slow), "TP2"])
def test_merged_weights_read_one_at_a_time_equal_those_merged_in_place(root, tmp_path, layout):
    ranks(
        lora_behavior.merged_both_ways,
        layout,
        model(root, "llama"),
        str(tmp_path),
        target_modules=("all-linear", "all-embedding"),
    )
    in_place, read = (load_file(tmp_path / way / "model.safetensors") for way in ("in-place", "read"))
    base = load_file(f"{model(root, 'llama')}/model.safetensors")
    assert in_place.keys() == read.keys() == base.keys()
    assert all(torch.equal(in_place[name], read[name]) for name in base)
    assert {name for name in base if not torch.equal(base[name], read[name])} == {
        name for name in base if "norm" not in name and "lm_head" not in name and "embed" not in name
    }


def test_the_biases_that_choose_experts_stay_as_the_base_has_them(root, tmp_path):
    """Megatron moves them after every step; an adapter trained beside moving biases would meet others when loaded."""
    directory = tiny_model.make("deepseek_v3", root, num_hidden_layers=2)
    data = tiny_run.write_data(tmp_path / "train.jsonl")
    given = {"train_type": "lora", "to_hf": True, "merge_lora": True, "train_iters": 2}
    result = tiny_run.train(tiny_run.arguments(directory, data, tmp_path / "run", **given))
    assert result.exit_code == 0, result.message
    base, merged = load_file(directory / "model.safetensors"), result.weights()
    biases = [name for name in base if name.endswith("e_score_correction_bias")]
    assert len(biases) == 1
    assert all(torch.equal(base[name], merged[name]) for name in biases)
