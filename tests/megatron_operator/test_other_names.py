"""mtj from-args: names and forms that other versions have for the same thing."""

import shlex

import pytest
import yaml

from megatron_operator.cli.main import main
from megatron_trainjob.args.cli import parse_command_line


@pytest.fixture
def translated(tmp_path, capsys):
    """translated(text, name): what the command writes for a file of this name and text."""

    def run(text: str, name: str) -> str:
        (tmp_path / name).write_text(text)
        assert main(["from-args", str(tmp_path / name)]) == 0
        return capsys.readouterr().out

    return run


def test_an_export_with_the_names_of_training_is_carried_over(translated):
    text = translated("megatron export --load /mnt/x/ckpt --save /mnt/x/out --to_hf true\n", "export.sh")
    assert "mtj export --mcore_model /mnt/x/ckpt --output_dir /mnt/x/out --to_hf true" in text
    assert "NOT CARRIED OVER" not in text


@pytest.mark.parametrize(("adapters", "is_one"), [(["/mnt/x/a"], True), (["/mnt/x/a", "/mnt/x/b"], False)])
def test_a_list_of_one_is_a_text_where_one_is_meant(translated, adapters, is_one):
    values = {"model": "/m", "dataset": ["/d/a.jsonl"], "max_epochs": 1, "tuner_type": "lora", "adapters": adapters}
    text = translated(yaml.safe_dump(values), "config.yaml")
    assert yaml.safe_load(text)["spec"]["args"]["adapter_load"] == (adapters[0] if is_one else adapters)
    assert ("NOT CARRIED OVER" in text) != is_one


def test_parts_of_a_loss_scale_are_written_in_their_own_order(translated):
    command = "megatron sft --model /m --dataset /d/a.jsonl --max_epochs 1 --loss_scale ignore_empty_think+last_round"
    args = yaml.safe_load(translated(f"{command}\n", "train.sh"))["spec"]["args"]
    assert args["loss_scale"] == "last_round_with_ignore_empty_think"


FP8 = "--fp8_recipe blockwise --fp8_format e4m3 --fp8_param_gather true"


def test_an_export_in_fp8_is_one(translated):
    command = (
        f"megatron export --mcore_model /mnt/x/c --to_hf true --mtp_num_layers 0 --expert_model_parallel_size 8 {FP8}"
    )
    text = translated(f"{command}\n", "export.sh")
    assert "--quant_method fp8" in text
    assert "--fp8" not in text.splitlines()[-1]
    words = shlex.split(text.splitlines()[-1])[2:]
    parsed = parse_command_line(words, task="export")
    assert (parsed.violations, parsed.args.quant_method, parsed.args.mtp_num_layers) == ((), "fp8", None)


def test_other_fp8_settings_of_an_export_stay_and_are_refused(translated):
    text = translated(f"megatron export --mcore_model /c --to_hf true {FP8} --fp8_format hybrid\n", "export.sh")
    (problem,) = parse_command_line(shlex.split(text.splitlines()[-1])[2:], task="export").violations
    assert problem.path.endswith("fp8_format")


@pytest.mark.parametrize(("name", "value"), [("recompute_granularity", "none"), ("moe_expert_capacity_factor", None)])
def test_a_null_of_a_configuration_is_what_it_is_there(translated, name, value):
    values = {"model": "/m", "dataset": ["/d/a.jsonl"], "num_train_epochs": 1, "save_steps": 5, name: None}
    text = translated(yaml.safe_dump(values), "config.yaml")
    assert yaml.safe_load(text)["spec"]["args"].get(name) == value
    assert "NOT CARRIED OVER" not in text


def test_a_null_that_is_no_default_is_reported(translated):
    values = {"model": "/m", "dataset": ["/d/a.jsonl"], "max_epochs": 1, "attention_backend": None}
    text = translated(yaml.safe_dump(values), "config.yaml")
    assert "attention_backend: null  # NOT CARRIED OVER: has no value; write one, or remove it" in text
