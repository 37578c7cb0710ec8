"""Effects of the arguments of parallel layout and recomputation: the run is split otherwise and learns the same.

What was built is read from megatron_config.json and from the checkpoint's manifest; losses are compared with the run of
one rank. 2e-4: float32 sums in another order, over four steps with a learning rate of 1e-3.
"""

import json

import pytest

from megatron_trainjob.exit_codes import ExitCode
from tests.effects.registry import effect
from tests.support.data import preference_data
from tests.support.models import tiny_model
from tests.support.ranks import tiny_run

pytestmark = pytest.mark.dist
TOLERANCE = 2e-4


@pytest.fixture(scope="session")
def llama(four_layers):
    return four_layers


@pytest.fixture(scope="module")
def plain(llama, data, tmp_path_factory):
    """The run of one rank, evaluated and exported."""
    save = tmp_path_factory.mktemp("plain") / "run"
    return tiny_run.train(
        tiny_run.arguments(llama, data, save, val_dataset=[str(data)], to_hf=True, global_batch_size=2)
    )


def layout(run) -> dict[str, int]:
    assert run.exit_code == 0, run.message
    return json.loads((run.folder / "iter_0000004" / "manifest.json").read_text())["layout"]


def config(run) -> dict[str, object]:
    assert run.exit_code == 0, run.message
    return json.loads((run.folder / "megatron_config.json").read_text())


@effect("tensor_model_parallel_size")
def test_tensor_parallel_ranks_share_every_matrix_and_learn_the_same(train, plain):
    run = train(ranks=2, tensor_model_parallel_size=2)
    assert (layout(run)["tp"], layout(run)["dp"]) == (2, 1)
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)


@effect("sequence_parallel")
def test_sequence_parallel_splits_activations_and_learns_the_same(train, plain):
    run = train(ranks=2, tensor_model_parallel_size=2, sequence_parallel=True)
    assert config(run)["sequence_parallel"] is True
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)


def test_a_size_for_experts_that_a_model_has_not_changes_nothing(train, plain):
    run = train(ranks=2, expert_tensor_parallel_size=1, tensor_model_parallel_size=2, sequence_parallel=True)
    assert layout(run)["tp"] == 2
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)


@effect("pipeline_model_parallel_size")
def test_pipeline_stages_hold_layers_each_and_learn_the_same(train, plain):
    run = train(ranks=2, pipeline_model_parallel_size=2)
    assert (layout(run)["pp"], layout(run)["dp"]) == (2, 1)
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)


@effect("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
@pytest.mark.parametrize(("end", "layers"), [("first", 1), ("last", 3)])
def test_a_stage_can_hold_more_layers_than_the_other(train, plain, end, layers):
    name = f"decoder_{end}_pipeline_num_layers"
    run = train(ranks=2, pipeline_model_parallel_size=2, **{name: layers})
    assert config(run)[f"num_layers_in_{end}_pipeline_stage"] == layers
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)


@effect("context_parallel_size")
def test_context_parallel_ranks_share_every_sequence_and_learn_the_same(train, plain):
    run = train(ranks=2, context_parallel_size=2)
    assert (layout(run)["cp"], layout(run)["dp"]) == (2, 1)
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)


@effect("overlap_grad_reduce", "overlap_param_gather")
def test_overlapped_communication_changes_no_number(train):
    alone = train(ranks=2).column("lm loss")
    reduce = train(ranks=2, overlap_grad_reduce=True)
    both = train(ranks=2, overlap_grad_reduce=True, overlap_param_gather=True)
    assert reduce.column("lm loss") == pytest.approx(alone, abs=1e-6)
    assert both.column("lm loss") == pytest.approx(alone, abs=1e-6)


@effect("recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules")
@pytest.mark.parametrize(
    "given",
    [
        {"recompute_granularity": "none"},
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2},
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
        {"recompute_modules": ["mlp"]},
    ],
    ids=["none", "uniform", "block", "modules"],
)
def test_recomputation_is_set_as_asked_and_changes_no_number(train, plain, given):
    run = train(**given)
    wanted = {name: None if value == "none" else value for name, value in given.items()}
    assert {name: config(run)[name] for name in wanted} == wanted
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=1e-6)


@pytest.mark.parametrize("family", ["llama_bias", pytest.param("ernie4_5", marks=pytest.mark.slow)])
def test_a_recomputed_block_with_a_bias_learns_the_same(train, model_root, family):
    given = {"model": str(tiny_model.make(family, model_root)), "train_iters": 2}
    kept, recomputed = train(**given), train(**given, recompute_modules=["mlp", "layernorm"])
    assert recomputed.column("lm loss") == pytest.approx(kept.column("lm loss"), abs=1e-6)
    assert recomputed.column("grad_norm") == pytest.approx(kept.column("grad_norm"), rel=1e-5)


@pytest.mark.slow
def test_random_weights_are_the_same_in_every_layout(train):
    """Each tensor is drawn from the seed and its name, not in the order in which a rank builds its layers."""
    one = train(no_initialization=False, train_iters=2).column("lm loss")
    for layout_of_two in ({"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}):
        split = train(ranks=2, no_initialization=False, train_iters=2, **layout_of_two)
        assert split.column("lm loss") == pytest.approx(one, abs=1e-5)


@effect("virtual_pipeline_model_parallel_size", "num_layers_per_virtual_pipeline_stage")
@pytest.mark.parametrize(
    "given",
    [
        {"virtual_pipeline_model_parallel_size": 2},
        {"num_layers_per_virtual_pipeline_stage": 1},
        pytest.param(
            {"virtual_pipeline_model_parallel_size": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["chunks", "layers", "overlapped"],
)
def test_virtual_stages_take_turns_and_learn_the_same(train, plain, data, given):
    """Four layers, two stages of two chunks; the last evaluation round of two rows fills no round of the schedule."""
    run = train(ranks=2, pipeline_model_parallel_size=2, val_dataset=[str(data)], **given)
    assert config(run)["virtual_pipeline_model_parallel_size"] == 2
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)
    assert run.column("eval_lm loss") == pytest.approx(plain.column("eval_lm loss"), abs=TOLERANCE)


@effect("pipeline_model_parallel_layout")
@pytest.mark.parametrize(
    "text",
    [pytest.param("Et|tttL", marks=pytest.mark.slow), "Ett|t|t|L", pytest.param("E|t*4L", marks=pytest.mark.slow)],
)
def test_a_layout_places_layers_and_learns_the_same(train, plain, text):
    """One chunk or two a stage, layers unevenly split, and an end alone; the export is that of one rank."""
    run = train(ranks=2, pipeline_model_parallel_size=2, pipeline_model_parallel_layout=text, to_hf=True)
    assert layout(run)["pp"] == 2
    assert run.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=TOLERANCE)
    written, expected = run.weights(), plain.weights()
    assert written.keys() == expected.keys()
    assert all(written[name].allclose(expected[name], atol=2e-3) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("train_type", ["full", "lora"])
def test_chunks_take_turns_where_ranks_hold_experts_each(train, model_root, train_type):
    """Two stages of two chunks, and in each stage two ranks with half of the experts; saved, resumed and exported."""
    model = str(tiny_model.make("qwen3_moe", model_root))
    given = {"model": model, "train_type": train_type, "lora_dropout": 0.0, "dataloader_type": "single", "to_hf": True}
    given |= {"global_batch_size": 4}
    given |= {"merge_lora": True} if train_type == "lora" else {}
    split = {
        "ranks": 4,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "expert_model_parallel_size": 2,
    }
    one = train(**given)
    assert one.exit_code == 0, one.message
    assert train(name="split", stop_at=2, resume="Auto", **given, **split).exit_code == ExitCode.PREEMPTED
    run = train(name="split", resume="Auto", attempt=1, **given, **split)
    assert run.exit_code == 0, run.message
    assert run.column("lm loss") == pytest.approx(one.column("lm loss"), abs=TOLERANCE)
    written, expected = run.weights(), one.weights()
    assert written.keys() == expected.keys()
    assert all(written[name].allclose(expected[name], atol=2e-3) for name in expected)


SLOW = pytest.mark.slow
FIRST_STAGE = ["embedding", "decoder.layers.0"]
LORA = {"train_type": "lora", "lora_dropout": 0.0}
MERGED = {**LORA, "merge_lora": True}


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("Ett|t|t|L", {}),
        pytest.param("E|t*4L", LORA, marks=SLOW),
        pytest.param("Et*4|L", {**LORA, "use_distributed_optimizer": False, "torch_dtype": "bfloat16"}, marks=SLOW),
        pytest.param("E|t|tt|tL", {**LORA, "optimizer": "lion"}, marks=SLOW),
        pytest.param("Et|tttL", {"freeze_parameters": FIRST_STAGE}, marks=SLOW),
        pytest.param("Et|tttL", {"freeze_parameters": FIRST_STAGE, "use_distributed_optimizer": False}, marks=SLOW),
        pytest.param("Et|tttL", {"freeze_parameters": FIRST_STAGE, "optimizer": "dist_muon"}, marks=SLOW),
    ],
    ids=str,
)
def test_a_run_goes_on_with_and_without_a_layout(train, text, given):
    """Where a stage trains nothing too: adapters are in layers only, and freezing may take all of a stage."""
    settings = {"train_iters": 4, **given}
    placed = {"ranks": 2, "pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": text}
    whole = train(**settings).column("lm loss")
    for name, before, after in (("from", placed, {}), ("to", {}, placed)):
        train(name=name, stop_at=2, **settings, **before)
        resumed = train(name=name, resume="Required", attempt=1, **settings, **after)
        assert resumed.exit_code == 0, resumed.message
        assert resumed.column("lm loss") == pytest.approx(whole, abs=TOLERANCE)


@pytest.mark.parametrize(
    "given",
    [{"pipeline_model_parallel_size": 2}, pytest.param({"tensor_model_parallel_size": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_tied_embeddings_learn_the_same_over_two_ranks(train, model_root, given):
    """The output layer of a last stage holds a copy of the embedding, whose gradients are summed over both."""
    model = str(tiny_model.make("llama_tied", model_root))
    one, run = train(model=model), train(model=model, ranks=2, **given)
    assert run.column("lm loss") == pytest.approx(one.column("lm loss"), abs=TOLERANCE)
    assert run.column("grad_norm") == pytest.approx(one.column("grad_norm"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "kto", "rm"])
def test_tied_embeddings_learn_preferences_the_same_over_two_stages(train, model_root, tmp_path, kind):
    model = str(tiny_model.make("llama_tied", model_root))
    given = {"model": model, "dataset": [str(preference_data.write(tmp_path / "pairs.jsonl"))], "rlhf_type": kind}
    given |= {"micro_batch_size": 2, "global_batch_size": 4}
    one = train(task="rlhf", **given)
    run = train(task="rlhf", ranks=2, pipeline_model_parallel_size=2, **given)
    assert (one.exit_code, run.exit_code) == (0, 0), (one.message, run.message)
    assert run.column("grad_norm") == pytest.approx(one.column("grad_norm"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "given", "copies"),
    [
        ("E|t*4L", {**MERGED, "overlap_grad_reduce": True, "overlap_param_gather": True}, 2),
        (
            "E|t|tt|tL",
            {**MERGED, "recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
            1,
        ),
        ("E|tt|tt|L", {"recompute_modules": ["mlp", "layernorm"]}, 1),
        ("E|t*4L", {"tie_word_embeddings": True}, 1),
    ],
    ids=["overlapped", "recomputed", "modules recomputed", "tied"],
)
def test_chunks_take_turns_where_an_end_is_alone(train, model_root, text, given, copies):
    """Beside as many copies of the model on a rank each: an end alone has no layer, and may train nothing."""
    given = dict(given)
    if given.pop("tie_word_embeddings", False):
        given["model"] = str(tiny_model.make("llama", model_root, tie_word_embeddings=True))
    one = train(ranks=copies, **given)
    run = train(
        ranks=2 * copies, pipeline_model_parallel_size=2, pipeline_model_parallel_layout=text, to_hf=True, **given
    )
    assert (one.exit_code, run.exit_code) == (0, 0), (one.message, run.message)
    assert run.column("lm loss") == pytest.approx(one.column("lm loss"), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("train_type", ["full", "lora"])
def test_a_run_goes_on_with_and_without_virtual_stages(train, train_type):
    settings = {"train_iters": 4, "train_type": train_type, "lora_dropout": 0.0}
    virtual = {"ranks": 2, "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    whole = train(**settings).column("lm loss")
    for name, before, after in (("from", virtual, {}), ("to", {}, virtual)):
        train(name=name, stop_at=2, **settings, **before)
        resumed = train(name=name, resume="Required", attempt=1, **settings, **after)
        assert resumed.exit_code == 0, resumed.message
        assert resumed.column("lm loss") == pytest.approx(whole, abs=TOLERANCE)
