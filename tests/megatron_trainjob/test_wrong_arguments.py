"""Wrong manifests, the part under spec.args: every problem of each at once, with path, value and remedy."""

import pytest

from megatron_trainjob.args.parse import Refused, parse

RUN = {"model": "m", "dataset": ["d"], "train_iters": 10}
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
}

# name -> (arguments that replace those of RUN, task, problems without "spec.args.").
WRONG = {
    "unknown argument": ({"lrr": 1e-4}, "sft", ["lrr: unknown argument; did you mean lr? (got 0.0001)"]),
    "argument of another trainer": (
        {"per_device_train_batch_size": 4},
        "sft",
        ["per_device_train_batch_size: unknown argument; did you mean micro_batch_size? (got 4)"],
    ),
    "camelCase": (
        {"microBatchSize": 4},
        "sft",
        ["microBatchSize: unknown argument; did you mean micro_batch_size? (got 4)"],
    ),
    "wrong type": ({"lr": "fast"}, "sft", ["lr: expects a number (got 'fast')"]),
    "quoted number": (
        {"micro_batch_size": "4"},
        "sft",
        ["micro_batch_size: expects a whole number; remove the quotes (got '4')"],
    ),
    "half a sample": ({"micro_batch_size": 0.5}, "sft", ["micro_batch_size: expects a whole number (got 0.5)"]),
    "text for a list": (
        {"dataset": "train.jsonl"},
        "sft",
        ["dataset: expects a list of texts such as [a, b]; write [train.jsonl] (got 'train.jsonl')"],
    ),
    "yes for true": ({"packing": "yes"}, "sft", ["packing: expects true or false (got 'yes')"]),
    "wrong choice": (
        {"train_type": "qlora"},
        "sft",
        ["train_type: must be one of lora, full, lora_llm; did you mean lora? (got 'qlora')"],
    ),
    "choice in wrong case": (
        {"optimizer": "Adam"},
        "sft",
        ["optimizer: must be one of adam, sgd, muon, dist_muon, lion; did you mean adam? (got 'Adam')"],
    ),
    "negative rate": ({"lr": -1e-4}, "sft", ["lr: must be greater than 0 (got -0.0001)"]),
    "share above one": ({"split_dataset_ratio": 1}, "sft", ["split_dataset_ratio: must be less than 1 (got 1)"]),
    "missing model": (
        {"model": None},
        "sft",
        ["model: is missing; set it to a Hub id or a folder with config.json and tokenizer (got None)"],
    ),
    "missing data": (
        {"dataset": []},
        "sft",
        ["dataset: is missing; set it, or cached_dataset, to the data to train on (got ())"],
    ),
    "missing length": (
        {"train_iters": None},
        "sft",
        ["train_iters: or max_epochs is required to determine the length of the run; set one of them (got None)"],
    ),
    "nothing at all": (
        {"model": None, "dataset": None, "train_iters": None},
        "sft",
        [
            "model: is missing; set it to a Hub id or a folder with config.json and tokenizer (got None)",
            "dataset: is missing; set it, or cached_dataset, to the data to train on (got ())",
            "train_iters: or max_epochs is required to determine the length of the run; set one of them (got None)",
        ],
    ),
    "tp * pp * cp does not divide": (
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 3},
        "sft",
        [
            "tensor_model_parallel_size: times pipeline_model_parallel_size and context_parallel_size is 2 * 3 * 1 = 6"
            " ranks for one copy of the model, and 8 ranks are not divisible by that; use 6 or 12 ranks or other sizes"
            " (got 2)"
        ],
    ),
    "batch does not divide": (
        {"global_batch_size": 12},
        "sft",
        [
            "global_batch_size: must be a multiple of micro_batch_size * data-parallel size = 1 * 8 = 8;"
            " use 8 or 16 (got 12)"
        ],
    ),
    "heads are not divisible": (
        {"tensor_model_parallel_size": 16, "global_batch_size": 16},
        "sft",
        [
            "tensor_model_parallel_size: times pipeline_model_parallel_size and context_parallel_size is 16 * 1 * 1 ="
            " 16 ranks for one copy of the model, and 8 ranks are not divisible by that; use 16 ranks or other sizes"
            " (got 16)",
            "tensor_model_parallel_size: does not divide the 8 attention heads of the model;"
            " use a divisor of 8 (got 16)",
        ],
    ),
    "layers are not divisible": (
        {"pipeline_model_parallel_size": 8},
        "sft",
        [
            "pipeline_model_parallel_size: 12 layers are not divisible by 8 pipeline stages; change it, or set"
            " decoder_first_pipeline_num_layers or decoder_last_pipeline_num_layers (got 8)"
        ],
    ),
    "experts of a dense model": (
        {"expert_model_parallel_size": 2},
        "sft",
        [
            "expert_model_parallel_size: has no effect, because the model has no experts; remove it (got 2)",
        ],
    ),
    "sample longer than the model": (
        {"max_length": 4096},
        "sft",
        [
            "max_length: exceeds the 2048 positions of the model; use 2048 or fewer, or set rope_scaling (got 4096)",
        ],
    ),
    "fp16 and bf16": (
        {"fp16": True, "bf16": True},
        "sft",
        ["fp16: cannot be combined with bf16: true; change one of the two (got True)"],
    ),
    "full recomputation of nothing": (
        {"recompute_granularity": "full"},
        "sft",
        [
            "recompute_granularity: needs recompute_method; set that, or change recompute_granularity (got 'full')",
            "recompute_granularity: needs recompute_num_layers; set that, or change recompute_granularity (got 'full')",
        ],
    ),
    "a stream grouped by length": (
        {"group_by_length": True, "streaming": True},
        "sft",
        [
            "group_by_length: cannot be combined with streaming: true, because grouping needs the length of every "
            "sample before training; change one of the two (got True)"
        ],
    ),
    "endless stream": (
        {"streaming": True, "train_iters": None, "max_epochs": 1},
        "sft",
        ["streaming: needs train_iters; set that, or change streaming (got True)"],
    ),
    "more than adapters in LoRA training": (
        {"train_type": "lora", "trainable_parameters": ["decoder"]},
        "sft",
        [
            "trainable_parameters: cannot be combined with train_type: lora or lora_llm, because LoRA freezes the model"
            " and trains its adapters; change one of the two (got ('decoder',))",
        ],
    ),
    "regular expression": (
        {"freeze_parameters_regex": "layers.(1"},
        "sft",
        [
            "freeze_parameters_regex: is not a regular expression (missing ), unterminated subpattern at position 7);"
            " correct it (got 'layers.(1')"
        ],
    ),
    "two warmups": (
        {"lr_warmup_fraction": 0.1, "lr_warmup_iters": 5},
        "sft",
        [
            "lr_warmup_fraction: cannot be combined with lr_warmup_iters > 0, because both set the length of the"
            " warmup; change one of the two (got 0.1)"
        ],
    ),
    "warmup longer than the run": (
        {"lr_warmup_iters": 10},
        "sft",
        ["lr_warmup_iters: must be less than the 10 steps of the decay; use at most 9 (got 10)"],
    ),
    "rising rate": (
        {"min_lr": 1e-4},
        "sft",
        ["min_lr: is above the peak learning rate 1e-05; use a smaller one (got 0.0001)"],
    ),
    "preference setting in sft": (
        {"loss_type": "ipo"},
        "sft",
        ["loss_type: is not part of task_type causal_lm in sft, which has one loss; remove it (got 'ipo')"],
    ),
    "classification in pre-training": (
        {"task_type": "seq_cls"},
        "pt",
        ["task_type: seq_cls is a kind of task sft; change the task (got 'seq_cls')"],
    ),
    "another divergence in a loss without": (
        {"f_divergence_type": "js_divergence", "loss_type": "apo_zero"},
        "rlhf",
        [
            "f_divergence_type: needs loss_type: sigmoid or sigmoid_norm or robust or exo_pair or hinge or ipo or "
            "discopop or sft; set that, or remove f_divergence_type (got 'js_divergence')"
        ],
    ),
    "secret in a manifest": (
        {"hub_token": "hf_x"},
        "sft",
        [
            "hub_token: is refused: a manifest must not contain a secret; pass HF_TOKEN to the pods from a Secret"
            " through envFrom (got '(hidden)')"
        ],
    ),
    "many things": (
        {"lrr": 1, "micro_batch_size": 0, "packing": "true", "fp16": True, "bf16": True, "max_length": 9999},
        "sft",
        [
            "lrr: unknown argument; did you mean lr? (got 1)",
            "micro_batch_size: must be at least 1 (got 0)",
            "packing: expects true or false; remove the quotes (got 'true')",
            "max_length: exceeds the 2048 positions of the model; use 2048 or fewer, or set rope_scaling (got 9999)",
            "fp16: cannot be combined with bf16: true; change one of the two (got True)",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_reported_completely(name):
    arguments, task, problems = WRONG[name]
    parsed = parse({**RUN, **arguments}, task=task, world_size=8, hf_config=CONFIG)
    assert [str(violation).removeprefix("spec.args.") for violation in parsed.violations] == problems
    assert isinstance(parsed, Refused)
