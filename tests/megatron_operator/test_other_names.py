"""mtj from-args: names and forms that other versions have for the same thing."""

import pytest
import yaml

from megatron_operator.cli.main import main


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
