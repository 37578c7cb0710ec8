"""FLOPs against counts done by hand."""

import json
from dataclasses import replace

import pytest

from megatron_trainer.report import flops
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read
from megatron_trainjob.memory import speed
from tests.support.models import tiny_model
from tests.support.ranks import counted_flops
from tests.support.ranks.pool import gloo_ranks
from tests.support.ranks.tiny_run import arguments, write_data

FULL, LORA = TrainArgs(train_type="full"), TrainArgs(train_type="lora")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}

WINDOW = {"use_sliding_window": True, "sliding_window": 4}


def flops_per_token(config, args):
    """Of a token with a loss."""
    return flops.flops_per_token(read(config), args) + flops.flops_per_target(read(config), args)


def flops_per_pair(config):
    return flops.flops_per_pair(read(config))


LLAMA_LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 160
HEAD = 64 * 1000
MIXTURE = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
MIXTURE_LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 2 * 3 * 64 * 48 + 64 * 8


def test_full_training_takes_six_and_lora_four_per_weight_and_token():
    weights = 3 * LLAMA_LAYER + HEAD
    assert flops_per_token(LLAMA, FULL) == 6 * weights
    assert flops_per_token(LLAMA, LORA) == 4 * weights


def test_the_output_matrix_counts_for_tokens_with_a_loss_alone():
    for args, factor in ((FULL, 6), (LORA, 4)):
        assert flops.flops_per_token(read(LLAMA), args) == factor * 3 * LLAMA_LAYER
        assert flops.flops_per_target(read(LLAMA), args) == factor * HEAD
    predicting = replace(read(LLAMA), trained_predictions=2)
    assert flops.flops_per_target(predicting, FULL) == 6 * 3 * HEAD


@pytest.mark.parametrize("head", [{"task_type": "seq_cls"}, {"task_type": "embedding"}, {"rlhf_type": "rm"}])
def test_a_head_has_no_output_matrix(head):
    assert flops_per_token(LLAMA, TrainArgs(**head)) == 6 * 3 * LLAMA_LAYER


def test_a_generative_reranker_has_one():
    assert flops_per_token(LLAMA, TrainArgs(task_type="generative_reranker")) == flops_per_token(LLAMA, FULL)


def test_smollm2_has_its_134_million_weights():
    """All 134,515,008 parameters but the 61 norms of 576: the tied embedding counts once, as the output matrix."""
    smollm2 = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
    }
    assert flops_per_token(smollm2, FULL) == 6 * (134_515_008 - 61 * 576)


def test_heads_may_be_wider_than_hidden_size_over_heads():
    wide = LLAMA | {"head_dim": 32}
    extra_width = 16 * (2 * 4 + 2 * 2)
    assert flops_per_token(wide, FULL) == 6 * (3 * (LLAMA_LAYER + 64 * extra_width) + HEAD)


def test_of_a_mixture_only_the_chosen_experts_and_the_router_count():
    assert flops_per_token(MIXTURE, FULL) == 6 * (3 * MIXTURE_LAYER + HEAD)


@pytest.mark.parametrize(
    ("changes", "num_dense"),
    [
        ({"mlp_only_layers": [0]}, 1),
        ({"decoder_sparse_step": 2}, 2),
        ({"mlp_only_layers": []}, 0),
    ],
)
def test_dense_layers_of_a_mixture_count_as_dense(changes, num_dense):
    expected = num_dense * LLAMA_LAYER + (3 - num_dense) * MIXTURE_LAYER + HEAD
    assert flops_per_token(MIXTURE | changes, FULL) == 6 * expected


def test_dense_layers_before_the_experts_and_shared_experts_count():
    mixture = MIXTURE | {"model_type": "dots1", "n_routed_experts": 8, "n_shared_experts": 2, "norm_topk_prob": True}
    for num_dense in (0, 2):
        expected = num_dense * LLAMA_LAYER + (3 - num_dense) * (MIXTURE_LAYER + 3 * 64 * 96) + HEAD
        assert flops_per_token(mixture | {"first_k_dense_replace": num_dense}, FULL) == 6 * expected


def test_one_wide_shared_expert_counts_for_every_token():
    mixture = MIXTURE | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 96}
    assert flops_per_token(mixture, FULL) == 6 * (3 * (MIXTURE_LAYER + 3 * 64 * 96) + HEAD)


def test_latent_attention_counts_its_low_rank_matrices():
    latent = {
        "model_type": "deepseek_v3",
        "first_k_dense_replace": 3,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
    }
    attention = 64 * 24 + 24 * 4 * 20 + 64 * (16 + 8) + 16 * 4 * (12 + 10) + 4 * 10 * 64
    assert flops_per_token(LLAMA | latent, FULL) == 6 * (3 * (attention + 3 * 64 * 160) + HEAD)
    without_rank = attention - 64 * 24 - 24 * 4 * 20 + 64 * 4 * 20
    changed = LLAMA | latent | {"q_lora_rank": None}
    assert flops_per_token(changed, FULL) == 6 * (3 * (without_rank + 3 * 64 * 160) + HEAD)
    assert flops_per_pair(LLAMA | latent) == 3 * 2 * 3 * 4 * (8 + 12 + 10)


def test_a_pair_of_query_and_key_costs_score_and_value_in_every_head():
    """Forward 2 * 16 for the score and 2 * 16 for the value, three times that with backward, in 4 heads of 3 layers."""
    assert flops_per_pair(LLAMA) == 3 * (2 * 16 + 2 * 16) * 4 * 3


def test_layers_with_a_window_count_the_pairs_within_it():
    """Qwen2 with a window in the last two of three layers."""
    model = read(LLAMA | {"model_type": "qwen2", **WINDOW, "max_window_layers": 1})
    of_layer = 3 * (2 * 16 + 2 * 16) * 4
    assert (flops.flops_per_pair(model), flops.flops_per_near_pair(model)) == (of_layer, 2 * of_layer)
    assert flops.flops_per_near_pair(read(LLAMA)) == 0


@pytest.mark.parametrize(("length", "window"), [(8, 8), (8, 3), (8, 1), (5, 40)])
def test_a_plan_counts_the_keys_of_a_token_exactly(length, window):
    pairs = sum(min(query + 1, window) for query in range(length))
    assert speed._keys(length, window) * length == pytest.approx(pairs)


def test_a_window_makes_a_planned_step_shorter_where_samples_are_longer_than_it():
    args = TrainArgs(max_length=4096, micro_batch_size=1, global_batch_size=1)

    def seconds(**window):
        model = read(LLAMA | {"model_type": "qwen2", "max_window_layers": 0, **window})
        return speed._forward(args, model, tokens=4096).scores

    windowed = seconds(**WINDOW)
    assert windowed / seconds() == pytest.approx((1 + 2 + 3 + 4 * 4093) / (4096 * 4097 / 2))
    assert seconds(**WINDOW | {"sliding_window": 4096}) == seconds()


@pytest.mark.dist
def test_a_run_of_a_model_with_a_window_counts_the_pairs_within_it(tmp_path):
    folder = tiny_model.make("mistral_window", tmp_path)
    given = arguments(folder, write_data(tmp_path / "train.jsonl"), tmp_path / "run", train_iters=1)
    [(tokens, targets, pairs, near_pairs, counted)] = gloo_ranks(1).run(counted_flops.of_steps, given)[0]
    model = read(json.loads((folder / "config.json").read_text()))
    assert 0 < targets < tokens
    assert 0 < near_pairs < model.window * tokens < pairs
    expected = flops.flops_per_token(model, FULL) * tokens + flops.flops_per_target(model, FULL) * targets
    assert counted == pytest.approx(expected + flops.flops_per_near_pair(model) * near_pairs)
