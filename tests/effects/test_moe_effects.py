"""Effects of the arguments of experts and latent attention, on tiny models of several families.

What changes the model is trained from random weights for one step and read from the export: transformers must be able
to load it. Routing and balancing show in losses. Of two layers the last has experts.
"""

import json

import pytest

from tests.effects.registry import effect
from tests.support.models import tiny_model


@pytest.fixture
def train_on(train, model_root):
    """train_on(family, **arguments): a run on the tiny model of a family, of so many layers."""

    def run(family: str, *, layers: int = 2, **arguments):
        model = tiny_model.make(family, model_root, num_hidden_layers=layers)
        result = train(model=str(model), **arguments)
        assert result.exit_code == 0, result.message
        return result

    return run


@pytest.fixture
def refusal(train, model_root):
    """refusal(family, **arguments): what a run that cannot be is answered."""

    def run(family: str, **arguments) -> str:
        result = train(model=str(tiny_model.make(family, model_root)), **arguments)
        assert result.exit_code == 64, result.message
        return result.message

    return run


def exported(run) -> dict[str, object]:
    return json.loads((run.folder / "hf" / "config.json").read_text())


def core(run) -> dict[str, object]:
    return json.loads((run.folder / "megatron_config.json").read_text())


def load_with_transformers(run) -> None:
    from transformers import AutoModelForCausalLM

    _, told = AutoModelForCausalLM.from_pretrained(run.folder / "hf", output_loading_info=True)
    assert not any(told.values()), told


SHAPES = {
    "num_experts": ("qwen3_moe", 2, "num_experts"),
    "moe_ffn_hidden_size": ("qwen3_moe", 32, "moe_intermediate_size"),
    "moe_shared_expert_intermediate_size": ("qwen2_moe", 48, "shared_expert_intermediate_size"),
    "moe_router_topk": ("qwen3_moe", 1, "num_experts_per_tok"),
    "moe_router_topk_scaling_factor": ("deepseek_v3", 1.25, "routed_scaling_factor"),
    "q_lora_rank": ("deepseek_v3", 24, "q_lora_rank"),
    "kv_lora_rank": ("deepseek_v3", 16, "kv_lora_rank"),
    "qk_head_dim": ("deepseek_v3", 16, "qk_nope_head_dim"),
    "qk_pos_emb_head_dim": ("deepseek_v3", 8, "qk_rope_head_dim"),
}


@effect(*SHAPES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_randomly_initialized_model_has_the_requested_shape(train_on, name):
    family, value, key = SHAPES[name]
    pre_softmax = {"moe_router_pre_softmax": True} if name == "moe_router_topk" else {}
    run = train_on(family, no_initialization=False, to_hf=True, train_iters=1, **pre_softmax, **{name: value})
    assert exported(run)[key] == value
    load_with_transformers(run)


@effect("moe_layer_freq")
def test_experts_lie_in_the_layers_that_were_asked_for(train_on, refusal):
    random_weights = {"no_initialization": False, "to_hf": True, "train_iters": 1}
    every_second = train_on("qwen3_moe", layers=4, moe_layer_freq="2", **random_weights)
    assert core(every_second)["moe_layer_freq"] == [1, 0, 1, 0]
    assert exported(every_second)["mlp_only_layers"] == [1, 3]
    load_with_transformers(every_second)
    after_two = train_on("deepseek_v3", layers=4, moe_layer_freq="[0]*2+[1]*2", **random_weights)
    assert exported(after_two)["first_k_dense_replace"] == 2
    load_with_transformers(after_two)
    assert "spec.args.moe_layer_freq" in refusal("deepseek_v3", moe_layer_freq="2", **random_weights)
    assert "spec.args.moe_layer_freq" in refusal("mixtral", moe_layer_freq="[0,1,1,1]", **random_weights)
    assert "spec.args.moe_layer_freq" in refusal("qwen3_moe", moe_layer_freq="sometimes", **random_weights)


@effect("moe_router_pre_softmax")
def test_scores_of_chosen_experts_are_normalized_or_not(train_on, refusal):
    after = train_on("qwen3_moe", train_iters=1)
    before = train_on("qwen3_moe", moe_router_pre_softmax=True, to_hf=True, train_iters=1)
    assert exported(before)["norm_topk_prob"] is False
    assert abs(before.column("lm loss")[0] - after.column("lm loss")[0]) > 1e-4
    assert "spec.args.moe_router_pre_softmax" in refusal("mixtral", moe_router_pre_softmax=True)


@effect("moe_router_score_function", "moe_router_enable_expert_bias", "multi_latent_attention")
@pytest.mark.parametrize(
    ("name", "fact", "other"),
    [
        ("moe_router_score_function", "sigmoid", "softmax"),
        ("moe_router_enable_expert_bias", True, False),
        ("multi_latent_attention", True, False),
    ],
)
def test_what_the_family_fixes_can_be_said_and_not_be_changed(train_on, refusal, name, fact, other):
    run = train_on("deepseek_v3", train_iters=1, **{name: fact})
    assert core(run).get(name, True) == fact
    assert f"this model has {name}: {str(fact).lower()}" in refusal("deepseek_v3", **{name: other})


@effect("moe_router_dtype")
def test_routing_is_computed_in_the_type_that_was_asked_for(train_on):
    usual = train_on("qwen3_moe", torch_dtype="bfloat16", train_iters=1)
    coarse = train_on("qwen3_moe", torch_dtype="bfloat16", moe_router_dtype="none", train_iters=1)
    fine = train_on("qwen3_moe", torch_dtype="bfloat16", moe_router_dtype="fp64", train_iters=1)
    assert [core(run)["moe_router_dtype"] for run in (usual, coarse, fine)] == ["fp32", None, "fp64"]
    assert coarse.column("lm loss") != usual.column("lm loss")
    assert fine.column("lm loss") == pytest.approx(usual.column("lm loss"), abs=1e-2)


@effect("moe_router_bias_update_rate")
def test_the_expert_bias_moves_by_the_rate_at_every_step(train_on, model_root):
    from safetensors.torch import load_file

    before = load_file(tiny_model.make("deepseek_v3", model_root, num_hidden_layers=2) / "model.safetensors")
    for rate in (0.01, 0.0):
        run = train_on("deepseek_v3", moe_router_bias_update_rate=rate, to_hf=True, train_iters=1)
        names = [name for name in run.weights() if name.endswith("e_score_correction_bias")]
        moved = [(run.weights()[name] - before[name]).abs().max().item() for name in names]
        assert moved == pytest.approx([rate], abs=1e-6)


@effect("moe_router_load_balancing_type", "moe_aux_loss_coeff")
def test_experts_are_balanced_by_the_loss_that_was_asked_for(train_on):
    weak = train_on("qwen3_moe", moe_aux_loss_coeff=1e-6, lr=1e-2)
    strong = train_on("qwen3_moe", moe_aux_loss_coeff=1.0, lr=1e-2)
    of_rows = train_on("qwen3_moe", moe_aux_loss_coeff=1e-6, moe_router_load_balancing_type="seq_aux_loss", lr=1e-2)
    sinkhorn = train_on("qwen3_moe", moe_router_load_balancing_type="sinkhorn", lr=1e-2)
    none = train_on("qwen3_moe", moe_router_load_balancing_type="none", lr=1e-2)
    assert weak.column("load_balancing_loss")[0] == pytest.approx(strong.column("load_balancing_loss")[0])
    assert strong.column("load_balancing_loss")[-1] < weak.column("load_balancing_loss")[-1]
    # One sample a micro-batch: the loss of a row is that of the micro-batch.
    assert of_rows.column("seq_load_balancing_loss") == pytest.approx(weak.column("load_balancing_loss"), abs=1e-4)
    assert none.column("load_balancing_loss") == sinkhorn.column("load_balancing_loss") == []
    assert sinkhorn.column("lm loss")[0] != pytest.approx(none.column("lm loss")[0], abs=1e-5)


@effect("moe_z_loss_coeff")
def test_the_z_loss_holds_router_logits_small(train_on):
    weak = train_on("qwen3_moe", moe_z_loss_coeff=1e-6, lr=1e-2)
    strong = train_on("qwen3_moe", moe_z_loss_coeff=1.0, lr=1e-2)
    assert weak.column("z_loss")[0] == pytest.approx(strong.column("z_loss")[0])
    assert strong.column("z_loss")[-1] < weak.column("z_loss")[-1]


@effect("moe_expert_capacity_factor", "moe_token_drop_policy")
def test_full_experts_drop_tokens_by_the_policy(train_on):
    every = train_on("qwen3_moe", train_iters=1).column("lm loss")
    ample = train_on("qwen3_moe", moe_expert_capacity_factor=4.0, train_iters=1).column("lm loss")
    tight = train_on("qwen3_moe", moe_expert_capacity_factor=0.5, train_iters=1).column("lm loss")
    first = train_on(
        "qwen3_moe", moe_expert_capacity_factor=0.5, moe_token_drop_policy="position", train_iters=1
    ).column("lm loss")
    assert ample == pytest.approx(every, abs=1e-5)
    assert abs(tight[0] - every[0]) > 1e-4
    assert abs(first[0] - tight[0]) > 1e-4


@effect("expert_model_parallel_size", "expert_tensor_parallel_size", "moe_token_dispatcher_type")
@pytest.mark.dist
def test_experts_spread_over_ranks_learn_the_same(train_on):
    balanced = {"moe_aux_loss_coeff": 0.01, "moe_z_loss_coeff": 0.01, "train_iters": 2}
    alone = train_on("qwen3_moe", **balanced)
    replicated = train_on("qwen3_moe", ranks=2, **balanced)
    spread = train_on("qwen3_moe", ranks=2, expert_model_parallel_size=2, **balanced)
    tensor = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    gathered = train_on("qwen3_moe", ranks=2, moe_token_dispatcher_type="allgather", **tensor, **balanced)
    split = train_on("qwen3_moe", ranks=2, **tensor, **balanced)
    whole = train_on("qwen3_moe", ranks=2, expert_tensor_parallel_size=1, **tensor, **balanced)
    assert [core(run)["expert_model_parallel_size"] for run in (replicated, spread)] == [1, 2]
    assert [core(run)["expert_tensor_parallel_size"] for run in (split, whole)] == [2, 1]
    assert core(gathered)["moe_token_dispatcher_type"] == "allgather"
    for run, same in ((spread, replicated), (gathered, alone), (split, alone), (whole, alone)):
        # Tensor ranks whose tokens differ by one weigh their part of the balancing loss by their own number of tokens.
        for name in ("lm loss", "load_balancing_loss"):
            assert run.column(name) == pytest.approx(same.column(name), abs=1e-3), name
        # Logged as the mean of the ranks' means.
        assert run.column("z_loss") == pytest.approx(same.column("z_loss"), rel=2e-3)


@pytest.mark.dist
@pytest.mark.parametrize("sums_tokens", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_z_loss_of_padded_rows_is_the_same_however_ranks_split_them(train_on, sums_tokens):
    """The second of two ranks has most of the padding. Where tokens are summed, what is logged is the mean of means."""
    rows = {"padding_free": False, "micro_batch_size": 4, "calculate_per_token_loss": sums_tokens}
    rows |= {"global_batch_size": 4}
    given = {"moe_z_loss_coeff": 1.0, "train_iters": 2, **rows}
    alone = train_on("qwen3_moe", **given)
    split = train_on("qwen3_moe", ranks=2, tensor_model_parallel_size=2, sequence_parallel=True, **given)
    assert split.column("z_loss") == pytest.approx(alone.column("z_loss"), rel=5e-2 if sums_tokens else 1e-4)
    assert split.column("lm loss") == pytest.approx(alone.column("lm loss"), abs=1e-4)
