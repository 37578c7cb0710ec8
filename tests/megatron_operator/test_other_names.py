"""mtj from-args: names and forms that other versions have for the same thing."""

import shlex

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job
from megatron_operator.translate.arguments import DEFAULTS_OF_4
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


SFT = "megatron sft --model /m/x --dataset /d/a.jsonl --num_train_epochs 1"


def carried(text):
    """(spec.args, comments) of what is written; nothing in it is open."""
    assert "NOT CARRIED OVER" not in text, text
    assert isinstance(manifest.parse(yaml.safe_load(text)), Job), manifest.parse(yaml.safe_load(text))
    return yaml.safe_load(text)["spec"]["args"], "\n".join(line for line in text.splitlines() if line.startswith("#"))


NEEDLESS = {
    "--train_dataloader_shuffle true": "train_dataloader_shuffle: true (it is what is done in any case)",
    "--account_for_loss_in_pipeline_split false": "account_for_loss_in_pipeline_split: false (it is what is done",
    "--overlap_p2p_comm true": "overlap_p2p_comm: true (no number depends on it)",
    "--dataloader_pin_memory false": "dataloader_pin_memory: false (no number depends on it)",
    "--data_sharding true": "data_sharding: true (samples come in an order of this trainer's own)",
    "--accumulate_allreduce_grads_in_fp32 false": "(main_grads_dtype decides, which is fp32)",
    "--use_vllm false --cpu_offloading false --profile False": "profile: False (it asks for nothing)",
    "--bridge_backend mcore-bridge": "bridge_backend: mcore-bridge (weights are converted by this trainer)",
    "--megatron_extra_kwargs '{\"overlap-moe-expert-parallel-comm\": false}'": "_parallel_comm: False",
}


@pytest.mark.parametrize("words", NEEDLESS)
def test_what_is_done_in_any_case_is_left_out(translated, words):
    args, comments = carried(translated(f"{SFT} {words}\n", "train.sh"))
    assert f"Left out: {NEEDLESS[words]}" in comments or NEEDLESS[words] in comments
    assert set(args) <= {"model", "dataset", "max_epochs", *DEFAULTS_OF_4}


@pytest.mark.parametrize(
    "words",
    [
        "--train_dataloader_shuffle false",
        "--profile true",
        "--use_mcore_models false",
        "--cp_partition_mode contiguous",
    ],
)
def test_what_asks_for_something_else_is_not(translated, words):
    command = SFT.replace("epochs 1", "epochs 2")
    assert "NOT CARRIED OVER" in translated(f"{command} {words}\n", "train.sh")


def test_fields_of_megatron_are_passed_on(translated):
    words = "--account_for_loss_in_pipeline_split true --fp8_margin 2 --mtp_use_repeated_layer false"
    args, _ = carried(translated(f"{SFT} {words} --megatron_extra_kwargs '{{\"qk_clip\": true}}'\n", "train.sh"))
    assert args["extra_megatron_kwargs"] == {
        "account_for_loss_in_pipeline_split": True,
        "fp8_margin": 2,
        "mtp_use_repeated_layer": False,
        "qk_clip": True,
    }


def test_arguments_among_the_fields_become_arguments(translated):
    """Megatron-LM sets them last, over the command's own."""
    fields = '{"lr-warmup-iters": 7, "qk_clip": true, "num_train_epochs": 3}'
    text = translated(f"{SFT} --lr_warmup_iters 5 --megatron_extra_kwargs '{fields}'\n", "train.sh")
    args, _ = carried(text)
    assert (args["lr_warmup_iters"], args["max_epochs"]) == (7, 3)
    assert args["extra_megatron_kwargs"] == {"qk_clip": True}


def test_one_pass_in_order_is_one(translated):
    args, _ = carried(translated(f"{SFT} --train_dataloader_shuffle false\n", "train.sh"))
    assert args["dataloader_type"] == "single"


def test_sizes_of_embeddings_are_a_list_and_their_weights(translated):
    words = '--task_type embedding --loss_type infonce --mrl_dims \'{"64": 1.0, "128": 0.5}\''
    args, _ = carried(translated(f"{SFT} {words}\n", "train.sh"))
    assert (args["matryoshka_dims"], args["matryoshka_weights"]) == ([64, 128], [1.0, 0.5])


DPO = "megatron rlhf --rlhf_type dpo --model Qwen/Qwen3-8B --dataset /d/a.jsonl --num_train_epochs 1"


def test_a_reference_model_is_named_by_its_folder(translated):
    args, comments = carried(translated(f"{DPO} --ref_model Qwen/Qwen3-8B\n", "train.sh"))
    assert "Left out: ref_model: Qwen/Qwen3-8B (the model itself is the reference without it)." in comments
    args, _ = carried(translated(f"{DPO} --ref_model /m/base\n", "train.sh"))
    assert args["ref_load"] == "/m/base"
    text = translated(f"{DPO} --ref_model Qwen/Qwen3-4B\n", "train.sh")
    assert "ref_model: Qwen/Qwen3-4B  # NOT CARRIED OVER: unknown argument; did you mean ref_load?" in text


@pytest.mark.parametrize(("word", "value"), [("1", True), ("yes", True), ("T", True), ("0", False), ("no", False)])
def test_truth_has_the_words_of_the_parser_there(translated, word, value):
    args, _ = carried(translated(f"{SFT} --packing {word}\n", "train.sh"))
    assert args["packing"] is value
    values = {"model": "/m/x", "dataset": "/d/a.jsonl", "max_epochs": 1, "packing": yaml.safe_load(word)}
    args, _ = carried(translated(yaml.safe_dump(values), "config.yaml"))
    assert args["packing"] is value


def test_a_log_level_may_be_its_number(translated):
    args, _ = carried(translated(f"{SFT} --logging_level 20\n", "train.sh"))
    assert args["logging_level"] == "INFO"


def test_an_object_of_a_configuration_may_be_text(translated):
    values = {"model": "/m/x", "dataset": "/d/a.jsonl", "max_epochs": 1, "model_kwargs": '{"max_pixels": 1003520}'}
    args, _ = carried(translated(yaml.safe_dump(values), "config.yaml"))
    assert args["model_kwargs"] == {"max_pixels": 1003520}


def test_python_is_answered_with_what_to_pass(tmp_path, capsys):
    (tmp_path / "recipe.py").write_text("config.train.train_iters = 100\n")
    assert main(["from-args", str(tmp_path / "recipe.py")]) == 2
    assert "Python is not read; pass the command that it starts" in capsys.readouterr().err


def test_another_name_with_the_same_value_is_carried_over(translated):
    words = "--sequence_parallel_size 2 --context_parallel_size 2"
    args, _ = carried(translated(f"NPROC_PER_NODE=2 {SFT} {words}\n", "train.sh"))
    assert (args["sequence_parallel_size"], args["context_parallel_size"]) == (2, 2)
    text = translated(f"NPROC_PER_NODE=2 {SFT} --sequence_parallel_size 2\n", "train.sh")
    assert "sequence_parallel_size: 2  # NOT CARRIED OVER: is refused: it is another name" in text
