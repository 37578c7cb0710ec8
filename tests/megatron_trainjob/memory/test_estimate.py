"""Bytes per rank, computed by hand for a model that is small enough to do so."""

from dataclasses import replace

import pytest

from benchmarks.gpu.shapes import EXPERTS, QWEN2_5_7B, QWEN3_8B, SHAPE
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import read
from megatron_trainjob.memory import estimate
from megatron_trainjob.memory.estimate import OVERHEAD_BYTES
from tests.support.models.model_configs import PUBLISHED

# Per layer: qkv 8 * (8 + 2 * 4) = 128, proj 64, mlp 3 * 8 * 16 = 384 -> 576 split; norms 16 whole. Embedding 80.
TINY = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "torch_dtype": "bfloat16",
}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
# A tower of one layer of 8 channels, 16 wide: it keeps 2 * (8 * 8 + 3 * 16) = 224 bytes of each patch. An image of 256
# pixels has 16 patches, for 4 tokens.
SEEING = {
    **TINY,
    "model_type": "qwen2_vl",
    "vision_config": {"depth": 1, "embed_dim": 8, "hidden_size": 8, "mlp_ratio": 2, "num_heads": 2, "patch_size": 4},
}
TOWER = {"config": SEEING, "freeze_vit": False, "vit_gradient_checkpointing": False}
GIB = 1024**3
LORA = {"train_type": "lora", "lora_dropout": 0.05}
HALF = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
MEASURED = {
    "full": (60.7, SHAPE, {}),
    "LoRA": (34.8, SHAPE, LORA),
    "LoRA of 7B": (50.0, QWEN2_5_7B, {**LORA, "micro_batch_size": 2}),
    "LoRA of 7B in FP8": (63.7, QWEN2_5_7B, {**LORA, "micro_batch_size": 2, "fp8_format": "hybrid"}),
    "LoRA with normalized queries": (55.0, QWEN3_8B, {**LORA, "max_length": 2048, "global_batch_size": 16}),
    "full in FP8": (59.5, SHAPE, {"fp8_format": "hybrid"}),
    "experts of 16 rows": (
        81.1,
        EXPERTS,
        {**HALF, "main_grads_dtype": "bf16", "micro_batch_size": 16, "global_batch_size": 16},
    ),
    "experts": (52.8, EXPERTS, {**HALF, "main_grads_dtype": "bf16", "micro_batch_size": 8}),
}
"""Peaks of torch's allocator in GiB, on one card: benchmarks/results/gpu-2026-11-28.md."""


def tiny(world_size=1, *, config=TINY, tokens=None, task="sft", **arguments):
    args = TrainArgs(**{"max_length": 16, "global_batch_size": 8, **arguments})
    return estimate(args, read(config), world_size, tokens=tokens, task=task)


def test_one_rank_holds_weights_gradients_and_adam_state_of_everything():
    """4 * (576 + 16) + 2 * 80 + 8 = 2536 parameters: 2 bytes of weight, 4 of gradient, 12 of optimizer state."""
    rank = tiny().peak
    assert (rank.parameters, rank.weights, rank.gradients, rank.optimizer) == (2536, 5072, 10144, 30432)


def test_float32_training_has_no_main_copy():
    """4 bytes of weight, 4 of gradient, two moments of 4."""
    rank = tiny(fp16=False, bf16=False).peak
    assert (rank.weights, rank.gradients, rank.optimizer) == (4 * 2536, 4 * 2536, 8 * 2536)


def test_distributed_optimizer_splits_state_over_data_parallel_ranks():
    assert tiny(world_size=4).peak.optimizer == 30432 // 4
    assert tiny(world_size=4, use_distributed_optimizer=False).peak.optimizer == 30432


def test_tensor_parallel_ranks_share_matrices_but_not_norms():
    """(4 * 576 + 160) / 2 + 4 * 16 + 8 = 1304."""
    assert tiny(world_size=2, tensor_model_parallel_size=2).peak.parameters == 1304


def test_pipeline_stages_hold_their_layers_and_their_edge():
    """Stage 0: 2 * 592 + 80; stage 1: 2 * 592 + 80 + 8."""
    stages = tiny(world_size=2, pipeline_model_parallel_size=2).stages
    assert [stage.parameters for stage in stages] == [1264, 1272]


def test_tied_embedding_is_copied_to_the_last_stage_only():
    tied = {**TINY, "tie_word_embeddings": True}
    assert tiny(config=tied).peak.parameters == 2536 - 80
    stages = tiny(world_size=2, config=tied, pipeline_model_parallel_size=2).stages
    assert [stage.parameters for stage in stages] == [1264, 1272]


def test_activations_of_selective_recomputation():
    """Per token and layer, elements: input, second input, two norm outputs 4 * 8; q, k, v, output 8 + 8 + 8;
    gate, up, product 3 * 16 = 104 in all, 2 bytes each. 16 tokens, 4 layers, and the embedding's output 8.
    """
    assert tiny().peak.activations == 16 * (4 * 104 + 8) * 2


def test_activations_without_recomputation_have_the_log_sums_of_flash_attention():
    """One float32 per token and head."""
    more = tiny(recompute_granularity="none").peak.activations - tiny().peak.activations
    assert more == 4 * 16 * 4 * 4


def test_unfused_attention_keeps_its_scores():
    """tokens * heads * longest * 2 bytes in every layer."""
    unfused = tiny(recompute_granularity="none", attention_backend="unfused").peak.activations
    assert unfused - tiny().peak.activations == 4 * 16 * 4 * 16 * 2


def test_full_recomputation_keeps_layer_inputs_and_one_layer_at_a_time():
    """Four inputs and the embedding's output of 8 * 2 bytes, and one layer of 104 * 2 plus log-sums 4 * 4."""
    assert tiny(**FULL).peak.activations == 16 * (5 * 8 * 2 + 104 * 2 + 4 * 4)


def test_sequence_parallel_splits_what_tensor_parallel_leaves_whole():
    """Split over 2: the 4 * 8 of norms and inputs as well as the 72 others; embedding 8 too."""
    halves = tiny(world_size=2, tensor_model_parallel_size=2, sequence_parallel=True).peak.activations
    whole = tiny(world_size=2, tensor_model_parallel_size=2).peak.activations
    assert halves == 16 * (4 * 104 + 8) * 2 // 2
    assert whole == 16 * (4 * (32 + 36) + 8) * 2


def test_context_parallel_splits_tokens():
    result = tiny(world_size=2, context_parallel_size=2)
    assert result.tokens == 8
    assert result.peak.activations == tiny().peak.activations // 2


def test_earlier_pipeline_stages_hold_more_micro_batches():
    """1F1B: stage 0 of 4 holds four micro-batches of one layer, stage 3 holds one."""
    stages = tiny(world_size=4, pipeline_model_parallel_size=4).stages
    layer = 16 * 104 * 2
    assert [stage.activations for stage in stages] == [4 * (layer + 16 * 8 * 2), 3 * layer, 2 * layer, layer]


def of_tower(world_size=1, **arguments):
    """Bytes of activations that a rank of the first stage has more where its tower trains."""
    trained, frozen = (tiny(world_size, **{**TOWER, **arguments, "freeze_vit": no}) for no in (False, True))
    return trained.stages[0].activations - frozen.stages[0].activations


def test_the_tower_keeps_the_patches_of_an_image_or_of_a_whole_row():
    """A row of 16 tokens has room for 64 patches; a packed one holds as many images as fit; a pair has two."""
    assert of_tower() == of_tower(packing=True, max_pixels=256) == 64 * 224
    assert of_tower(max_pixels=256) == 16 * 224
    assert of_tower(max_pixels=256, rlhf_type="dpo", task="rlhf") == 2 * 16 * 224


def test_context_ranks_run_the_tower_on_all_images_of_a_row():
    assert of_tower(world_size=2, context_parallel_size=2) == 64 * 224


def test_the_first_stage_holds_the_tower_for_every_micro_batch_in_flight():
    assert of_tower(world_size=4, pipeline_model_parallel_size=4) == 4 * 64 * 224


def test_logits_lie_on_the_last_stage():
    """16 tokens * 10 columns * (2 + 2 + 4) bytes."""
    stages = tiny(world_size=2, pipeline_model_parallel_size=2).stages
    assert [stage.logits for stage in stages] == [0, 1280]


def test_total_is_the_sum_of_the_parts_and_peak_the_largest_stage():
    result = tiny(world_size=2, pipeline_model_parallel_size=2)
    parts = [
        stage.weights + stage.gradients + stage.optimizer + stage.activations + stage.logits + OVERHEAD_BYTES
        for stage in result.stages
    ]
    assert [stage.total for stage in result.stages] == parts
    assert result.peak.total == max(parts)


def test_lora_trains_only_the_adapters():
    """Rank 2: qkv 2 * (8 + 16), proj 2 * (8 + 8), fc1 2 * (8 + 32), fc2 2 * (16 + 8) = 208 a layer."""
    result = tiny(train_type="lora", lora_rank=2)
    assert result.num_trainable == 4 * 208
    assert (result.peak.gradients, result.peak.optimizer) == (4 * 832, 12 * 832)
    assert result.peak.weights == 2 * (2536 + 832)


def test_lora_on_named_modules_counts_only_those():
    assert tiny(train_type="lora", lora_rank=2, target_modules=("linear_proj",)).num_trainable == 4 * 32


def test_offloaded_share_of_the_optimizer_leaves_the_device():
    offloaded = tiny(optimizer_cpu_offload=True, optimizer_offload_fraction=0.75)
    assert offloaded.peak.optimizer == 30432 // 4


def test_reference_model_of_preference_training_counts_its_weights():
    rank = tiny(task="rlhf").peak
    assert (rank.weights, rank.reference) == (2 * 2536, 2 * 2536)
    assert rank.total - tiny(task="rlhf", reference_free=True).peak.total == 2 * 2536


@pytest.mark.parametrize("arguments", [{"train_type": "lora"}, {"reference_free": True}])
def test_no_second_model_is_held_where_none_is_asked(arguments):
    assert tiny(task="rlhf", **arguments).peak.reference == 0


def test_a_pair_is_two_sequences_and_packed_rows_hold_what_they_hold():
    assert tiny(task="rlhf", micro_batch_size=2).tokens == 2 * 2 * 16
    assert tiny(task="rlhf", packing=True).tokens == tiny(packing=True).tokens == 16


def test_logits_are_made_for_few_tokens_at_once():
    """2^27 elements * (2 + 2 + 4) bytes; full training besides sums the gradient of 2^20 columns * 8 in float32."""
    config = {**TINY, "vocab_size": 2**20}
    assert tiny(task="rlhf", config=config, tokens=2**14).peak.logits == 2**27 * 8
    assert tiny(config=config, tokens=2**14).peak.logits == 2**27 * 8 + 2**20 * 8 * 4
    assert tiny(config=config, tokens=2**14, train_type="lora").peak.logits == 2**27 * 8


@pytest.mark.parametrize(
    ("arguments", "ranks", "kept"),
    [
        ({}, 1, 14 * 2),
        ({"torch_dtype": "float16"}, 1, 8 * 4),
        ({"tensor_model_parallel_size": 2}, 2, 14 * 2),
        ({"tensor_model_parallel_size": 2, "sequence_parallel": True}, 2, 8 * 4),
    ],
    ids=str,
)
def test_between_chunks_of_logits_the_smaller_of_two_gradients_is_kept(arguments, ranks, kept):
    """A column: 14 gradients in 16 bits, where a rank has them all and they are in bfloat16, or 8 sums in float32."""
    peak = tiny(ranks, config={**TINY, "vocab_size": 2**25}, tokens=14, **arguments).peak
    assert peak.logits == 2**27 * 8 + 2**25 // ranks * kept


def test_experts_are_spread_over_expert_ranks_and_their_state_over_expert_copies():
    """4 experts of 3 * 8 * 5 = 480, two per rank; 4 ranks hold 2 copies of each, and 4 copies of the rest."""
    config = {
        **TINY,
        "model_type": "mixtral",
        "num_hidden_layers": 1,
        "intermediate_size": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    rank = tiny(world_size=4, config=config, expert_model_parallel_size=2).peak
    dense = 192 + 16 + 4 * 8 + 2 * 80 + 8
    assert rank.parameters == dense + 240
    assert rank.optimizer == 12 * dense // 4 + 12 * 240 // 2


def test_a_run_without_any_length_is_asked_for_one():
    with pytest.raises(ValueError, match="max_length is needed"):
        estimate(TrainArgs(), replace(read(TINY), max_position_embeddings=0), 1)


@pytest.mark.parametrize(
    ("name", "world_size", "measured_gib", "arguments"),
    [
        ("Qwen2.5-14B", 8, 64, {"tensor_model_parallel_size": 4}),
        ("Qwen2.5-7B", 4, 56, {"tensor_model_parallel_size": 2, **FULL}),
        ("Qwen2.5-7B", 4, 50, {"tensor_model_parallel_size": 4, "max_length": 32768, "global_batch_size": 8, **FULL}),
        (
            "Qwen3-30B-A3B",
            16,
            60,
            {
                "pipeline_model_parallel_size": 2,
                "expert_model_parallel_size": 8,
                "expert_tensor_parallel_size": 1,
                "sequence_parallel": False,
                **FULL,
            },
        ),
    ],
)
def test_estimate_is_near_what_users_measured(name, world_size, measured_gib, arguments):
    """Published runs of the reference trainer with packed rows of 8192 tokens; they report reserved memory, which
    includes fragmentation, so the estimate may lie up to a fifth below and must not lie above by more than 5 %.
    That trainer makes the logits of all tokens at once, 8 bytes each with gradient and softmax: counted so here.
    """
    base = {"packing": True, "max_length": 8192, "global_batch_size": 16, "sequence_parallel": True}
    shape = read(PUBLISHED[name][1])
    args = TrainArgs(**{**base, **arguments})
    result = estimate(args, shape, world_size)
    whole = 8 * result.tokens * shape.vocab_size / args.tensor_model_parallel_size
    peak = max(stage.total + (whole - stage.logits if stage.logits else 0) for stage in result.stages)
    assert 0.8 * measured_gib <= peak / GIB <= 1.05 * measured_gib


@pytest.mark.parametrize("name", MEASURED)
def test_estimate_is_near_the_measured_peak(name):
    """Within a twentieth. The allocator counts no CUDA context."""
    measured_gib, config, given = MEASURED[name]
    args = TrainArgs(**{"packing": True, "max_length": 4096, "micro_batch_size": 4, "global_batch_size": 8, **given})
    peak = estimate(args, read(config), 1).peak
    assert (peak.total - peak.overhead) / GIB == pytest.approx(measured_gib, rel=0.05)


def test_a_precision_aware_optimizer_keeps_what_a_bfloat16_weight_lacks_instead_of_float32_main_parameters():
    """Of 2536 parameters: 2 bytes of remainder, and 8 of moments, or 2 of those in 8 bits."""
    aware = {"use_precision_aware_optimizer": True}
    eight = {"exp_avg_dtype": "fp8", "exp_avg_sq_dtype": "fp8"}
    assert tiny(**aware).peak.optimizer == 2536 * (2 + 8)
    assert tiny(**aware, **eight).peak.optimizer == 2536 * (2 + 2)
    assert tiny(**aware, fp8_format="hybrid").peak.optimizer == 2536 * (2 + 8)
    whole = ({"torch_dtype": "float16"}, {"fp8_format": "e4m3", "fp8_recipe": "blockwise"})
    assert {tiny(**aware, **each).peak.optimizer for each in whole} == {2536 * (4 + 8)}
    assert tiny(**aware, torch_dtype="float32").peak.optimizer == 2536 * 8


def test_recomputed_norms_save_memory_only_where_they_are_modules_of_their_own():
    """Two outputs of 16 tokens x 8 x 2 bytes in each of 4 layers; TransformerEngine's are part of dense linears."""

    def saved(**given):
        without, with_norms = ("core_attn",), ("core_attn", "layernorm")
        sizes = [tiny(**given, recompute_modules=each).peak.activations for each in (without, with_norms)]
        return sizes[0] - sizes[1]

    assert saved() == 0
    assert saved(transformer_impl="local") == 4 * 2 * 16 * 8 * 2


def test_fp8_keeps_weights_twice_in_eight_bits_and_inputs_of_trained_linears_once():
    plain, eight = tiny(), tiny(fp8_format="hybrid")
    assert eight.peak.weights - plain.peak.weights == 2 * (2536 - 2 * 80 - 8)
    assert plain.peak.activations - eight.peak.activations == 4 * 16 * (2 * 8 + 16 - 8)
    assert tiny(fp8_format="hybrid", fp8_param_gather=True) == eight, "it has no effect"
    adapters = [tiny(train_type="lora", fp8_format=each).peak.activations for each in (None, "hybrid")]
    assert adapters[0] == adapters[1]
