"""Command lines as the reference writes them."""

import pytest

from megatron_trainjob.args.cli import parse_command_line
from megatron_trainjob.args.parse import Refused

RUN = ["--model", "m", "--dataset", "d", "--train_iters", "10"]


def read(*argv):
    parsed = parse_command_line([*RUN, *argv], "sft")
    assert parsed.violations == ()
    return parsed.args


def problems(*argv):
    return [str(violation) for violation in parse_command_line([*RUN, *argv], "sft").violations]


@pytest.mark.parametrize(
    "argv",
    [
        ("--lr_warmup_iters", "5"),
        ("--lr-warmup-iters", "5"),
        ("--lr_warmup_iters=5",),
        ("--lr-warmup-iters=5",),
    ],
    ids=["snake", "kebab", "snake with =", "kebab with ="],
)
def test_flag_is_written_in_any_of_four_ways(argv):
    assert read(*argv).lr_warmup_iters == 5


@pytest.mark.parametrize(
    "argv",
    [
        ("--freeze_parameters", "a", "b", "c"),
        ("--freeze_parameters", "a", "--freeze-parameters", "b", "c"),
        ("--freeze_parameters", '["a", "b", "c"]'),
        ("--freeze_parameters=a", "--freeze_parameters=b", "--freeze_parameters=c"),
    ],
    ids=["spaces", "repeated", "json", "repeated with ="],
)
def test_list_is_written_with_spaces_by_repetition_or_as_json(argv):
    assert read(*argv).freeze_parameters == ("a", "b", "c")


@pytest.mark.parametrize(
    ("argv", "value"),
    [(("--packing", "true"), True), (("--packing", "False"), False), (("--packing",), True)],
)
def test_boolean_is_written_out_or_stands_alone(argv, value):
    assert read(*argv).packing is value


def test_numbers_objects_and_negative_values_are_read():
    args = read("--lr", "1e-5", "--eval_iters", "-1", "--columns", '{"a": "query"}', "--log_interval", "1e2")
    assert (args.lr, args.eval_iters, args.columns, args.log_interval) == (1e-5, -1, {"a": "query"}, 100)


def test_config_file_supplies_what_flags_leave_unset(tmp_path):
    config = tmp_path / "args.yaml"
    config.write_text("lr: 1e-5\nsave_steps: 7\nfreeze_parameters: [a]\n")
    args = read("--config", str(config), "--lr", "2e-5", "--freeze_parameters", "b")
    assert (args.lr, args.save_interval, args.freeze_parameters) == (2e-5, 7, ("b",))


def test_flag_replaces_the_same_argument_under_another_name(tmp_path):
    config = tmp_path / "args.yaml"
    config.write_text("save_steps: 7\n")
    assert read("--config", str(config), "--save_interval", "9").save_interval == 9


def test_problems_of_flags_file_and_rules_come_together(tmp_path):
    config = tmp_path / "args.yaml"
    config.write_text("min_lr: high\nlrr: 1\n")
    assert problems("--config", str(config), "--packing", "maybe", "--save_interval", "0") == [
        "args.min_lr: expects a number (got 'high')",
        "args.lrr: unknown argument; did you mean lr? (got 1)",
        "args.packing: expects true or false (got 'maybe')",
        "args.save_interval: must be at least 1 (got 0)",
    ]


def test_word_before_any_flag_is_refused():
    parsed = parse_command_line(["sft", *RUN], "sft")
    assert isinstance(parsed, Refused)
    assert [str(violation) for violation in parsed.violations] == [
        "args: is not a flag; arguments are written --name value (got 'sft')"
    ]


def test_single_value_that_is_given_twice_is_refused():
    assert problems("--lr", "1", "2") == ["args.lr: expects a number (got ['1', '2'])"]


def test_flag_without_its_value_is_refused():
    assert problems("--lr") == ["args.lr: expects a number (got [])"]


def test_missing_config_file_is_named():
    found = problems("--config", "/nowhere/args.yaml")
    assert found == [
        "args.config: cannot be read: [Errno 2] No such file or directory: '/nowhere/args.yaml'"
        " (got '/nowhere/args.yaml')"
    ]


@pytest.mark.parametrize("text", ["- a\n- b\n", "7: x\n"], ids=["list", "number as key"])
def test_config_file_must_hold_one_mapping(tmp_path, text):
    config = tmp_path / "args.yaml"
    config.write_text(text)
    assert problems("--config", str(config)) == [
        f"args.config: must contain one mapping of argument names to values (got '{config}')"
    ]


def test_config_file_with_a_key_twice_is_refused(tmp_path):
    config = tmp_path / "args.yaml"
    config.write_text("lr: 1\nlr: 2\n")
    assert problems("--config", str(config)) == [
        f"args.config: cannot be read: {config} line 2: key 'lr' is written twice, here and in line 1; keep one"
        f" (got '{config}')"
    ]


def test_empty_config_file_sets_nothing(tmp_path):
    config = tmp_path / "args.yaml"
    config.write_text("")
    assert read("--config", str(config)).lr is None


def test_rules_about_the_number_of_ranks_are_judged_when_it_is_known():
    argv = [*RUN, "--tensor_model_parallel_size", "3"]
    assert parse_command_line(argv, "sft").violations == ()
    found = parse_command_line(argv, "sft", world_size=4).violations
    assert [violation.path for violation in found] == ["args.tensor_model_parallel_size"]
