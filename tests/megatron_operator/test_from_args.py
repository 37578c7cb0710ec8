"""mtj from-args: commands, scripts, configurations and manifests of other trainers become a valid MegatronTrainJob."""

import json
import shlex

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from tests.support.operator.from_args import LENGTH, RUN, saved, spec_of, written

SCRIPT = r"""#!/bin/bash
# 2 * 60GiB; a comment with a 'quote
export WANDB_API_KEY=very-secret
GPUS=${GPUS:-2}
DATA=(
    'AI-ModelScope/alpaca-gpt4-data-zh#500'   # half a thousand
    /mnt/data/sft/train.jsonl#100
)
PYTORCH_CUDA_ALLOC_CONF='expandable_segments:True' \
NCCL_IB_HCA=mlx5 \
NPROC_PER_NODE=$GPUS \
CUDA_VISIBLE_DEVICES=0,1 \
megatron sft \
    --model ZhipuAI/GLM-4.5-Air \
    --dataset "${DATA[@]}" \
    --train_type lora \
    --save megatron_output/glm \
    --max_epochs 1 \
    --system 'Say "yes"; always.' > log.txt 2>&1 | tee all.log
echo done
"""


def test_a_script_becomes_a_job_with_volumes_to_fill_in(capsys, tmp_path):
    text = written(capsys, saved(tmp_path, SCRIPT))
    spec = spec_of(text)
    assert spec["args"] == {
        "model": "zai-org/GLM-4.5-Air",
        "dataset": ["AI-ModelScope/alpaca-gpt4-data-zh#500", "/mnt/data/sft/train.jsonl#100"],
        "train_type": "lora",
        "max_epochs": 1,
        "system": 'Say "yes"; always.',
        "use_hf": True,
    }
    assert spec["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": "2"}}
    assert spec["volumeMounts"] == [{"name": "mnt-data", "mountPath": "/mnt/data"}]
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "fill-in-mnt-data"}
    assert spec["network"] == {"ncclEnv": {"NCCL_IB_HCA": "mlx5"}}
    assert {"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True"} in spec["env"]
    assert "# Left out: save: megatron_output/glm (outputs go to the volume of spec.checkpoint)." in text
    assert "# was ZhipuAI/GLM-4.5-Air on ModelScope" in text


def test_no_secret_is_written_into_a_manifest(capsys, tmp_path):
    text = written(capsys, saved(tmp_path, SCRIPT.replace("--max_epochs 1", "--max_epochs 1 --hub_token hf_private")))
    assert "very-secret" not in text
    assert "hf_private" not in text
    assert {"name": "fill-in-secret", "key": "WANDB_API_KEY"} in [
        entry.get("valueFrom", {}).get("secretKeyRef") for entry in spec_of(text)["env"]
    ]


@pytest.mark.parametrize(
    ("command", "ranks"),
    [
        (
            f"megatron sft {RUN} {LENGTH} --tensor_model_parallel_size 4",
            (1, "4"),
        ),
        (
            f"NNODES=2 NODE_RANK=0 NPROC_PER_NODE=8 megatron sft {RUN} {LENGTH}",
            (2, "8"),
        ),
        (
            f"torchrun --nproc_per_node 4 --nnodes=3 --master_port 1 swift/cli/_megatron/sft.py {RUN} {LENGTH}",
            (3, "4"),
        ),
        (
            f"python3 -m torch.distributed.run --nproc-per-node=2 -m swift.cli._megatron.sft {RUN} {LENGTH}",
            (1, "2"),
        ),
        (
            f"nohup env A=1 CUDA_VISIBLE_DEVICES=0,1,2 megatron sft {RUN} {LENGTH} &",
            (1, "3"),
        ),
    ],
    ids=["of the layout", "environment", "torchrun", "module", "devices"],
)
def test_nodes_and_processes_are_taken_from_where_they_are_said(capsys, command, ranks):
    spec = spec_of(written(capsys, command))
    assert (spec["numNodes"], spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) == ranks


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        (f"megatron sft {RUN} --train_iters 3 --global_batch_size 96", {}),
        (
            f"megatron sft {RUN} --num_train_epochs 3 --packing true",
            {
                "finetune": True,
                "recompute_granularity": "none",
                "cross_entropy_loss_fusion": True,
                "calculate_per_token_loss": False,
                "save_safetensors": True,
            },
        ),
        (
            f"NPROC_PER_NODE=4 megatron sft {RUN} --train_iters 3 --global_batch_size 96 --tensor_model_parallel_size 2"
            " --expert_model_parallel_size 4 --sequence_parallel true",
            {"expert_tensor_parallel_size": 1},
        ),
    ],
    ids=["3.8", "4", "3.9, by its layout"],
)
def test_changed_defaults_of_a_version_are_written_out(capsys, command, changed):
    spec = spec_of(written(capsys, command))
    assert {name: spec["args"].get(name) for name in changed} == changed
    assert len(spec["args"]) >= len(changed)


def test_settings_of_the_environment_become_arguments(capsys):
    command = "INFONCE_TEMPERATURE=0.02 INFONCE_USE_BATCH=False megatron sft"
    given = f"{RUN} --task_type embedding --loss_type infonce --train_iters 3 --global_batch_size 96"
    spec = spec_of(written(capsys, f"{command} {given}"))
    assert spec["args"]["infonce_temperature"] == 0.02
    assert spec["args"]["infonce_use_batch"] is False
    assert "env" not in spec


@pytest.mark.parametrize(
    "given", ["CUDA_VISIBLE_DEVICES=$(nvidia-smi -L)", "NPROC_PER_NODE=gpu", "NNODES=$(wc -l < hosts)", "NNODES=$SIZE"]
)
def test_sizes_that_only_the_machine_knows_are_named(capsys, tmp_path, given):
    text = written(capsys, saved(tmp_path, f"export {given}\nmegatron sft {RUN} {LENGTH}\n"))
    assert f"# Nodes and GPUs cannot be counted from {given}: set numNodes and resourcesPerNode." in text


def test_sizes_of_images_and_videos_in_the_environment_become_settings(capsys):
    """The command's own model_kwargs is used where both have a setting."""
    variables = "MAX_PIXELS=1003520 FPS_MAX_FRAMES=12 VIDEO_MAX_PIXELS=50176"
    given = f"{RUN} --train_iters 3 --global_batch_size 96"
    text = written(capsys, f"{variables} megatron sft {given}")
    sizes = {"max_pixels": 1003520, "fps_max_frames": 12, "video_max_pixels": 50176}
    assert spec_of(text)["args"]["model_kwargs"] == sizes
    assert "env" not in spec_of(text)
    assert "MAX_PIXELS" not in text
    for name in ("max_pixels", "MAX_PIXELS"):
        text = written(capsys, f"{variables} megatron sft {given} --model_kwargs '{{\"{name}\": 401408}}'")
        assert spec_of(text)["args"]["model_kwargs"] == {**sizes, "max_pixels": 401408}


def test_variables_about_images_become_arguments_or_are_named_as_unread(capsys):
    variables = "env ROOT_IMAGE_DIR=/data/pictures QWENVL_BBOX_FORMAT=new NFRAMES=8 OTHER=1 IMAGE_MAX_TOKEN_NUM=64"
    text = written(capsys, f"{variables} megatron sft {RUN} --train_iters 3 --global_batch_size 96")
    arguments = spec_of(text)["args"]
    assert arguments["image_root"] == "/data/pictures"
    assert arguments["model_kwargs"] == {"image_max_token_num": 64, "qwenvl_bbox_format": "new"}
    assert "(hidden)" not in text, "the number of tokens is no secret"
    assert "# Left out: variables OTHER: add the relevant ones to spec.env.\n" in text
    assert "# Left out: variables NFRAMES: nothing here reads them" in text


def test_a_setting_of_tokenizers_is_no_secret(capsys):
    text = written(capsys, f"TOKENIZERS_PARALLELISM=false megatron sft {RUN} --train_iters 3 --global_batch_size 96")
    assert {"name": "TOKENIZERS_PARALLELISM", "value": "false"} in spec_of(text)["env"]


def test_what_would_change_the_training_stays_and_is_refused_with_its_reason(capsys):
    text = written(
        capsys, f"megatron rlhf {RUN} --rlhf_type grpo --use_vllm true --train_iters 3 --global_batch_size 96 --lrr 3"
    )
    found = manifest.parse(yaml.safe_load(text))
    assert "use_vllm: true" in text.replace("'true'", "true")
    assert "# NOT CARRIED OVER: belongs to GRPO, which generates answers while it trains" in text
    assert {"spec.args.use_vllm", "spec.args.lrr"} <= {violation.path for violation in found}


def test_a_yaml_configuration_is_read(capsys, tmp_path):
    config = saved(tmp_path, "model: /m\ndataset: [/d/x.jsonl]\nmax_epochs: 1\nlr: 1e-5\n", "config.yaml")
    assert spec_of(written(capsys, config, "--task", "pt"))["task"] == "pt"
    spec = spec_of(written(capsys, f"NPROC_PER_NODE=2 megatron sft --config {config} --lr 1e-4"))
    assert (spec["args"]["lr"], spec["args"]["max_epochs"]) == (1e-4, 1)
    assert spec_of(written(capsys, f"megatron sft {config}"))["args"]["lr"] == 1e-5


def test_an_export_becomes_the_command_that_converts(capsys):
    text = written(
        capsys,
        "swift export --mcore_model megatron_output/x/iter_0000100 --to_hf true --output_dir 'my model'"
        " --tensor_model_parallel_size 2",
    )
    words = shlex.split(text, comments=True)
    assert words[:2] == ["mtj", "export"]
    assert words[words.index("--output_dir") + 1] == "my model"


@pytest.mark.parametrize("source", ["python train.py --lr 1", "swift sft --model m", "/no/such/file.sh"])
def test_what_starts_no_training_is_refused(capsys, source):
    assert "source: " in written(capsys, source, code=2)


UNTRAINED = {"model_type": "bert", "hidden_size": 64}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Qwen/Qwen3-8B", ""),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", ""),
        ("someone/a-model-of-ours", ""),
        ("zai-org/GLM-4.1V-9B-Thinking", ""),
        ("zai-org/GLM-4.5V", ""),
        ("moonshotai/Kimi-VL-A3B-Instruct", "by its name it is of the family kimi_vl, which is not trained here"),
        ("models/InternVL3-8B", "the same model for transformers has -hf behind its name"),
        ("OpenGVLab/InternVL2_5-8B", "the same model for transformers has -hf behind its name"),
        ("google/gemma-3n-E4B-it", "by its name it is of the family gemma3n, which is not trained here"),
        ("meta-llama/Llama-4-Scout-17B-16E", ""),
        ("google/gemma-4-31B-it", ""),
        ("google/gemma-4-E4B-it", "the embeddings that enter every layer of Gemma-4-E2B and -E4B are not trained here"),
        ("google/gemma-4-12B-it", "the images of Gemma-4-12B are not trained here, its text decoder is"),
        ("{folder}", "config.json: model_type bert is not trained here; docs/families.md lists what is"),
        ("someone/cached", "config.json: model_type bert is not trained here"),
    ],
)
def test_a_model_that_is_not_trained_here_is_told_from_its_config_or_name(capsys, tmp_path, monkeypatch, model, said):
    """In the manifest and on standard error; without a look into the network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "models--someone--cached" / "snapshots" / "abc"
    for folder in (cached, tmp_path / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(UNTRAINED))
    model = model.format(folder=tmp_path / "model")
    assert main(["from-args", f"megatron sft --model {model} --dataset a/b --train_iters 3"]) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert (said in text) if said else ("not trained here" not in text)


def test_a_checkpoint_without_a_model_is_told_by_its_name(capsys):
    assert "family kimi_vl" in written(capsys, "megatron sft --load Kimi-VL-A3B-mcore --dataset a/b")
    assert "not trained" not in written(capsys, "megatron sft --load InternVL3_5-30B-A3B-mcore --dataset a/b")


@pytest.mark.parametrize(
    ("model", "value"),
    [
        ("OpenGVLab/InternVL3-8B", "OpenGVLab/InternVL3-8B-hf"),
        ("OpenGVLab/InternVL3_5-30B-A3B", "OpenGVLab/InternVL3_5-30B-A3B-HF"),
        ("OpenGVLab/InternVL3_5-8B-HF", "OpenGVLab/InternVL3_5-8B-HF"),
    ],
)
def test_a_model_with_code_of_its_own_becomes_the_same_one_for_transformers(capsys, model, value):
    text = written(capsys, f"megatron sft --model {model} --dataset a/b --train_iters 3")
    assert spec_of(text)["args"]["model"] == value
    assert (f"was {model}; the same model for transformers" in text) == (model != value)


def test_names_of_custom_dataset_info_are_no_paths(capsys):
    words = "--dataset support#5 ./b.jsonl --custom_dataset_info data/dataset_info.json"
    args = spec_of(written(capsys, f"megatron sft --model a/b --train_iters 3 {words}"))["args"]
    assert args["dataset"] == ["support#5", "/workdir/b.jsonl"]
    assert args["custom_dataset_info"] == ["/workdir/data/dataset_info.json"]


def test_a_refused_argument_stays_with_the_reason_beside_it(capsys):
    text = written(capsys, "megatron sft --model a/b --dataset c/d --train_iters 2 --custom_register_path x.py")
    assert "custom_register_path: [x.py]  # NOT CARRIED OVER: is refused: a manifest runs no code" in text
