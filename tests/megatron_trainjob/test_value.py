"""What a written value becomes, and what is said of one that fits nothing."""

import pytest

from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.args.value import WrongValue, from_text, read_value


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("train_iters", 500, 500),
        ("train_iters", 1e06, 1_000_000),
        ("lr", 1, 1.0),
        ("lr", "1e-5", 1e-5),
        ("packing", True, True),
        ("model", "org/model", "org/model"),
        ("dataset", ["a", "b"], ("a", "b")),
        ("interleave_prob", [1, "0.5"], (1.0, 0.5)),
        ("columns", {"text1": "query"}, {"text1": "query"}),
        ("rope_scaling", "yarn", "yarn"),
        ("rope_scaling", {"factor": 2}, {"factor": 2}),
        ("lr_decay_style", "linear", "linear"),
        ("recompute_modules", ["mlp", "moe"], ("mlp", "moe")),
        ("eval_iters", -1, -1),
        ("loss_scale", "default+ignore_empty_think", "ignore_empty_think"),
        ("loss_scale", "last_round+ignore_empty_think", "last_round_with_ignore_empty_think"),
        ("loss_scale", "ignore_empty_think+last_round+hermes", "last_round+hermes+ignore_empty_think"),
        ("loss_scale", "hermes+default", "hermes"),
        ("label_smoothing", 0.49, 0.49),
    ],
)
def test_value_is_read_in_the_type_of_its_argument(name, written, value):
    found = read_value(ARGUMENTS[name], written)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("train_iters", 1.5, "expects a whole number"),
        ("train_iters", True, "expects a whole number"),
        ("train_iters", "16", "expects a whole number; remove the quotes"),
        ("train_iters", "many", "expects a whole number"),
        ("train_iters", 0, "must be at least 1"),
        ("lr", "fast", "expects a number"),
        ("lr", True, "expects a number"),
        ("lr", 0, "must be greater than 0"),
        ("lr", float("nan"), "must be a finite number"),
        ("adam_beta1", 1, "must be less than 1"),
        ("freeze_parameters_ratio", 1.1, "must be at most 1"),
        ("packing", "true", "expects true or false; remove the quotes"),
        ("packing", 1, "expects true or false"),
        ("model", 7, "expects text (put it into quotes)"),
        ("dataset", "a", "expects a list of texts such as [a, b]; write [a]"),
        ("dataset", ["a", 1], "expects a list of texts such as [a, b], but one element is 1"),
        ("matryoshka_dims", 7, "expects a list of whole numbers such as [64, 128]; write [7]"),
        ("report_to", "wandb", "expects a list of texts such as [a, b]; write [wandb]"),
        ("matryoshka_dims", [64, 1.5], "expects a list of whole numbers such as [64, 128], but one element is 1.5"),
        ("matryoshka_dims", [0], "must be at least 1"),
        ("interleave_prob", [2.0], "must be at most 1"),
        ("columns", "a", "expects an object such as {key: value}"),
        ("rope_scaling", 2, "expects text or an object such as {key: value}"),
        ("lr_decay_style", "wsd", "must be one of cosine, linear, constant, WSD; did you mean WSD?"),
        ("cp_comm_type", "all_gater", "must be one of p2p, all_gather, a2a, a2a+p2p; did you mean all_gather?"),
        ("cp_comm_type", "A2A", "must be one of p2p, all_gather, a2a, a2a+p2p; did you mean a2a?"),
        ("cp_comm_type", "ring", "must be one of p2p, all_gather, a2a, a2a+p2p"),
        ("recompute_modules", ["mlp", "all"], "must be one of core_attn, moe_act, layernorm, mla_up_proj, mlp, moe"),
        ("ckpt_format", "zarr", "cannot be zarr: Megatron-Core no longer reads or writes zarr; use torch_dist"),
        (
            "safe_serialization",
            False,
            "cannot be false: weights are written as safetensors only, which everything reads that reads .bin files; "
            "remove it",
        ),
    ],
)
def test_error_for_a_wrong_value_names_what_was_expected(name, written, message):
    with pytest.raises(WrongValue) as wrong:
        read_value(ARGUMENTS[name], written)
    assert str(wrong.value) == message


@pytest.mark.parametrize("argument", ARGUMENTS.values(), ids=ARGUMENTS)
def test_every_type_says_what_it_expects(argument):
    for wrong in (object(), [object()]):
        with pytest.raises(WrongValue, match="expects"):
            read_value(argument, wrong)


@pytest.mark.parametrize(
    ("name", "text", "meaning"),
    [
        ("packing", "true", True),
        ("packing", "False", False),
        ("packing", "maybe", "maybe"),
        ("train_iters", "10", 10),
        ("train_iters", "1e3", 1000.0),
        ("train_iters", "ten", "ten"),
        ("lr", "1e-5", "1e-5"),
        ("model", "123", "123"),
        ("dataset", "a b", ["a b"]),
        ("dataset", '["a", "b"]', ["a", "b"]),
        ("columns", '{"a": "b"}', {"a": "b"}),
        ("columns", "{a", "{a"),
        ("rope_scaling", "yarn", "yarn"),
    ],
)
def test_word_of_a_command_line_means_what_its_argument_says(name, text, meaning):
    assert from_text(ARGUMENTS[name], text) == meaning
