"""Formulas, with numbers computed by hand."""

import pytest

from megatron_trainjob.args import derive, placement
from megatron_trainjob.args.tree import TrainArgs


def args(**values):
    return TrainArgs(**values)


@pytest.mark.parametrize(
    ("world_size", "tp", "pp", "cp", "copies"),
    [(8, 1, 1, 1, 8), (16, 4, 2, 1, 2), (32, 2, 2, 2, 4), (8, 8, 1, 1, 1)],
)
def test_data_parallel_size_is_what_model_parallelism_leaves(world_size, tp, pp, cp, copies):
    layout = args(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=cp)
    assert derive.data_parallel_size(layout, world_size) == copies


def test_ranks_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match=r"world size 6 is not divisible by tp \* pp \* cp = 4"):
        derive.data_parallel_size(args(tensor_model_parallel_size=4), 6)


def test_micro_batches_are_the_global_batch_over_all_copies():
    """64 samples over 16 / 4 = 4 copies with 2 samples each: 8."""
    layout = args(global_batch_size=64, micro_batch_size=2, tensor_model_parallel_size=4)
    assert derive.num_micro_batches(layout, 16) == 8


def test_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="global_batch_size 10 is not divisible"):
        derive.num_micro_batches(args(global_batch_size=10, micro_batch_size=4), 1)


def test_experts_have_copies_of_their_own():
    """16 / (etp 1 * ep 4 * pp 2) = 2; unset, expert tensor parallelism follows tensor parallelism."""
    layout = args(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        expert_model_parallel_size=4,
        expert_tensor_parallel_size=1,
    )
    assert derive.expert_data_parallel_size(layout, 16) == 2
    assert derive.expert_tensor_parallel_size(args(tensor_model_parallel_size=4)) == 4


@pytest.mark.parametrize(
    ("given", "rate"),
    [({}, 1e-5), ({"train_type": "lora"}, 1e-4), ({"train_type": "lora", "lr": 3e-4}, 3e-4)],
)
def test_learning_rate_follows_the_kind_of_training(given, rate):
    assert derive.learning_rate(args(**given)) == rate


@pytest.mark.parametrize(
    ("num_items", "copies", "batch", "micro", "epochs", "iters"),
    [
        (1000, 4, 16, 2, 1, 62),  # 1000 // 8 * 8 = 1000; 1000 // 16 = 62
        (1003, 4, 16, 2, 1, 62),  # the 3 that fill no micro-step are dropped
        (1000, 4, 16, 2, 3, 187),  # leftovers of 8 samples carry over: 3000 // 16 = 187
        (7, 4, 8, 2, 5, 0),  # fewer items than one micro-step
    ],
)
def test_steps_follow_from_epochs(num_items, copies, batch, micro, epochs, iters):
    run = args(global_batch_size=batch, micro_batch_size=micro, max_epochs=epochs)
    assert derive.train_iters(run, num_items, copies) == iters


def test_the_shorter_of_steps_and_epochs_ends_the_run():
    """1000 // 16 = 62 steps an epoch."""
    assert derive.train_iters(args(train_iters=50, max_epochs=1), 1000, 1) == 50
    assert derive.train_iters(args(train_iters=100, max_epochs=1), 1000, 1) == 62


def test_steps_are_needed_when_the_length_of_the_data_is_unknown():
    assert derive.train_iters(args(train_iters=50, max_epochs=1), None, 1) == 50
    with pytest.raises(ValueError, match="train_iters is required"):
        derive.train_iters(args(max_epochs=1), None, 1)


@pytest.mark.parametrize(
    ("given", "num_items", "iters"),
    [
        (-1, 100, 7),  # 6 whole batches of 16 and a short one of 4: nothing is left out, as the reference does
        (-1, 96, 6),
        (-1, 10, 1),
        (-1, 0, 0),
        (-1, 1, 1),  # fills no micro-step of 2 and is still evaluated
        (3, 100, 3),
        (3, 0, 0),
        (0, 100, 0),
    ],
)
def test_evaluation_steps_follow_from_the_validation_set(given, num_items, iters):
    assert derive.eval_iters(args(eval_iters=given), num_items) == iters


def test_evaluation_runs_with_checkpoints_unless_set_otherwise():
    assert derive.eval_interval(args(save_interval=70)) == 70
    assert derive.eval_interval(args(save_interval=70, eval_interval=30)) == 30


def test_schedule_counts_samples():
    """Batch 16: 100 steps decay over 1600 samples, a tenth of them is warmup, or 5 steps of 16."""
    assert derive.lr_decay_samples(args(), 100) == 1600
    assert derive.lr_decay_samples(args(lr_decay_iters=50), 100) == 800
    assert derive.lr_warmup_samples(args(lr_warmup_fraction=0.1), 100) == 160
    assert derive.lr_warmup_samples(args(lr_warmup_iters=5), 100) == 80


@pytest.mark.parametrize(
    ("stages", "first", "last", "layers"),
    [
        (1, None, None, (12,)),
        (4, None, None, (3, 3, 3, 3)),
        (3, 2, None, (2, 5, 5)),
        (3, None, 4, (4, 4, 4)),
        (4, 1, 3, (1, 4, 4, 3)),
        (2, 5, 7, (5, 7)),
    ],
)
def test_layers_are_spread_over_stages(stages, first, last, layers):
    layout = args(
        pipeline_model_parallel_size=stages,
        decoder_first_pipeline_num_layers=first,
        decoder_last_pipeline_num_layers=last,
    )
    assert placement.layers_per_stage(layout, 12) == layers


@pytest.mark.parametrize(
    ("given", "config", "fp16_bf16"),
    [
        ({}, {"torch_dtype": "bfloat16"}, (False, True)),
        ({}, {"dtype": "float16"}, (True, False)),
        ({}, {"torch_dtype": "float32"}, (False, False)),
        ({}, {"torch_dtype": "bfloat16", "dtype": "float32"}, (False, False)),
        ({}, {"torch_dtype": "bfloat16", "dtype": None}, (False, True)),
        ({}, {}, (False, False)),
        ({"torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}, (False, True)),
        ({"fp16": True}, {"torch_dtype": "bfloat16"}, (True, False)),
        ({"bf16": False}, {"torch_dtype": "bfloat16"}, (False, False)),
    ],
)
def test_precision_is_given_or_that_of_the_weights(given, config, fp16_bf16):
    assert derive.fp16_bf16(args(**given), config) == fp16_bf16


def test_model_value_is_given_or_of_the_model_or_a_fallback():
    config = {"model_type": "llama", "num_key_value_heads": 4}
    assert derive.model_value(args(num_query_groups=2), config, "num_query_groups") == 2
    assert derive.model_value(args(), config, "num_query_groups") == 4
    assert derive.model_value(args(), {"model_type": "bert"}, "num_query_groups") == 1
    assert derive.model_value(args(), {}, "num_layers") is None


@pytest.mark.parametrize(
    ("family", "key"),
    [("qwen3_moe", "num_experts"), ("deepseek_v3", "n_routed_experts"), ("mixtral", "num_local_experts")],
)
def test_experts_are_found_under_the_name_of_the_family(family, key):
    assert derive.num_experts(args(), {"model_type": family, key: 8}) == 8
    assert derive.num_experts(args(), {"model_type": "llama", key: 8}) == 0


def test_shared_experts_have_one_width_together():
    qwen = {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 20}
    deepseek = {"model_type": "deepseek_v3", "n_shared_experts": 2, "moe_intermediate_size": 8}
    assert derive.shared_expert_size(args(), qwen) == 20
    assert derive.shared_expert_size(args(), deepseek) == 16
    assert derive.shared_expert_size(args(), {"model_type": "llama"}) == 0


def test_router_is_that_of_the_model():
    qwen = {"model_type": "qwen3_moe", "norm_topk_prob": False}
    assert derive.router_topk(args(), {"model_type": "llama"}) == 2
    assert derive.router_pre_softmax(args(), qwen) is True
    assert derive.router_pre_softmax(args(), {"model_type": "mixtral"}) is False
    assert derive.router_has_bias(args(), {"model_type": "glm4_moe"}) is True
    assert derive.router_has_bias(args(), {**qwen, "scoring_func": "sigmoid"}) is False


def test_lengths_follow_each_other():
    config = {"model_type": "llama", "max_position_embeddings": 4096}
    assert derive.max_length(args(), config) == 4096
    assert derive.max_length(args(max_length=100), config) == 100
    assert derive.max_length(args(), {}) is None
    assert derive.packing_length(args(max_length=100), config) == 100
    assert derive.sequence_length(args(max_length=100, packing=True, packing_length=300), config) == 300
    assert derive.sequence_length(args(max_length=100, packing_length=300), config) == 100


def test_a_stream_has_one_worker_and_its_own_order():
    assert (derive.num_workers(args(streaming=True)), derive.dataloader_type(args(streaming=True))) == (1, "external")
    assert (derive.num_workers(args()), derive.dataloader_type(args())) == (4, "cyclic")


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"save": "/out"}, "/out"),
        ({"model": "Qwen/Qwen3-8B"}, "megatron_output/Qwen3-8B"),
        ({"model": "/models/llama/"}, "megatron_output/llama"),
        ({"load": "/ckpt/run"}, "megatron_output/run"),
    ],
)
def test_output_lies_in_a_folder_named_after_the_model(given, folder):
    assert derive.save_directory(args(**given)) == folder


def test_reports_lie_beside_the_checkpoints():
    assert derive.tensorboard_directory(args(), "/out/") == "/out/runs"
    assert derive.tensorboard_directory(args(tensorboard_dir="/tb"), "/out") == "/tb"
    assert derive.wandb_directory(args(), "/out") == "/out/wandb"
