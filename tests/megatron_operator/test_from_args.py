"""mtj from-args: commands, scripts, configurations and manifests of other trainers become a valid MegatronTrainJob."""

import json
import shlex

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job
from megatron_operator.translate.shell import statements

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


def written(capsys, *words, code=0) -> str:
    """Standard output of the command, or what it says of a source that it cannot translate."""
    assert main(["from-args", *words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def spec_of(text: str) -> dict:
    """The spec of the one valid manifest."""
    found = yaml.safe_load(text)
    assert isinstance(manifest.parse(found), Job), manifest.parse(found)
    return found["spec"]


ODD = r"""#!/usr/bin/env bash
cat > train2.sh <<'EOF'
megatron sft --model of-the-text --dataset of-the-text
EOF
ARGS=(--dataset /data/a.jsonl --max_epochs 1)
ARGS+=(--lr 1e-4)
srun --nodes=2 --ntasks-per-node=1 bash -c "NPROC_PER_NODE=8 NNODES=2 \
    megatron sft --model /models/qwen --dataset /data/a.jsonl --max_epochs 1"
numactl --cpunodebind=0 torchrun --nproc-per-node=4 $(which megatron) sft --model /models/qwen "${ARGS[@]}" "$@"
docker run --rm -e NPROC_PER_NODE=8 image megatron pt --model /models/qwen --dataset /data/b.jsonl --max_epochs 1 \
"""


@pytest.fixture
def script(tmp_path):
    """Writes a file and returns its path as a word."""

    def write(text: str, name: str = "train.sh") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_script_becomes_a_job_with_volumes_to_fill_in(capsys, script):
    text = written(capsys, script(SCRIPT))
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


def test_no_secret_is_written_into_a_manifest(capsys, script):
    text = written(capsys, script(SCRIPT.replace("--max_epochs 1", "--max_epochs 1 --hub_token hf_private")))
    assert "very-secret" not in text
    assert "hf_private" not in text
    assert {"name": "fill-in-secret", "key": "WANDB_API_KEY"} in [
        entry.get("valueFrom", {}).get("secretKeyRef") for entry in spec_of(text)["env"]
    ]


RUN = "--model /m --dataset /d/x.jsonl"
LENGTH = "--train_iters 3 --global_batch_size 96"


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
    "given", ["CUDA_VISIBLE_DEVICES=$(seq -s, 0 7)", "NPROC_PER_NODE=gpu", "NNODES=$(wc -l < hosts)", "NNODES=$SIZE"]
)
def test_sizes_that_only_the_machine_knows_are_named(capsys, script, given):
    text = written(capsys, script(f"export {given}\nmegatron sft {RUN} {LENGTH}\n"))
    assert f"# Nodes and GPUs cannot be counted from {given}: set numNodes and resourcesPerNode." in text


@pytest.mark.parametrize(
    "end", ["\\\n# slower\n", "\\ \n", "# \\\n"], ids=["comment between", "blank", "commented out"]
)
def test_options_behind_the_end_of_a_command_are_named(capsys, script, end):
    path = script(f"megatron sft {RUN} {LENGTH} {end}  --lr 3e-6 --seed 5\n")
    assert main(["from-args", path]) == 0
    shown = capsys.readouterr()
    assert "lr" not in spec_of(shown.out)["args"]
    assert "not translated: --lr 3e-6 --seed 5; the shell takes it for a program" in shown.err + shown.out


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


def test_what_would_change_the_training_stays_and_is_refused_with_its_reason(capsys):
    text = written(
        capsys, f"megatron rlhf {RUN} --rlhf_type grpo --use_vllm true --train_iters 3 --global_batch_size 96 --lrr 3"
    )
    found = manifest.parse(yaml.safe_load(text))
    assert "use_vllm: true" in text.replace("'true'", "true")
    assert "# NOT CARRIED OVER: belongs to GRPO, which generates answers while it trains" in text
    assert {"spec.args.use_vllm", "spec.args.lrr"} <= {violation.path for violation in found}


def test_a_yaml_configuration_is_read(capsys, script):
    config = script("model: /m\ndataset: [/d/x.jsonl]\nmax_epochs: 1\nlr: 1e-5\n", "config.yaml")
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


BATCH = "--max_epochs 1 --global_batch_size 32"


def pytorch_job(**container) -> dict:
    pod = {
        "nodeSelector": {"gpu": "h100"},
        "containers": [
            {
                "name": "pytorch",
                "image": "swift:3.8",
                "resources": {"limits": {"nvidia.com/gpu": 8}},
                "volumeMounts": [{"name": "shared", "mountPath": "/mnt/shared"}],
                **container,
            }
        ],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "team"}}],
    }
    roles = {"Master": {"replicas": 1, "template": {"spec": pod}}, "Worker": {"replicas": 3, "template": {"spec": pod}}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "tune", "namespace": "team"},
        "spec": {"pytorchReplicaSpecs": roles},
    }


@pytest.mark.parametrize(
    "container",
    [
        {
            "command": [
                "bash",
                "-c",
                f"cd /x && megatron sft --model /mnt/shared/m --dataset /mnt/shared/d.jsonl {BATCH}",
            ]
        },
        {
            "command": ["torchrun", "swift/cli/_megatron/sft.py"],
            "args": [
                "--model",
                "/mnt/shared/m",
                "--dataset",
                "/mnt/shared/d.jsonl",
                *BATCH.split(),
            ],
        },
    ],
    ids=["through a shell", "words"],
)
def test_a_pytorchjob_keeps_its_pods(capsys, script, container):
    job = pytorch_job(**container, env=[{"name": "NCCL_DEBUG", "value": "INFO"}])
    spec = spec_of(written(capsys, script(yaml.safe_dump(job), "job.yaml")))
    assert spec["args"] == {
        "model": "/mnt/shared/m",
        "dataset": ["/mnt/shared/d.jsonl"],
        "max_epochs": 1,
        "global_batch_size": 32,
    }
    assert (spec["numNodes"], spec["resourcesPerNode"]) == (4, {"limits": {"nvidia.com/gpu": 8}})
    assert spec["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "team"}}]
    assert spec["podTemplate"] == {"spec": {"nodeSelector": {"gpu": "h100"}}}


def test_a_trainjob_says_what_its_runtime_hides(capsys, script):
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "tune"},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {
                "numNodes": 2,
                "numProcPerNode": 4,
                "command": ["megatron", "sft"],
                "args": ["--model", "/m/x", "--dataset", "/d/x.jsonl", "--train_iters", "5"],
                "resourcesPerNode": {"limits": {"nvidia.com/gpu": "4"}},
            },
        },
    }
    text = written(capsys, script(yaml.safe_dump(job), "job.yaml"))
    assert spec_of(text)["numNodes"] == 2
    assert "what the training runtime torch-distributed adds (image, volumes) is not in this manifest" in text


@pytest.mark.parametrize("source", ["python train.py --lr 1", "swift sft --model m", "/no/such/file.sh"])
def test_what_starts_no_training_is_refused(capsys, source):
    assert "source: " in written(capsys, source, code=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b\\\n c", [("a", "b", "c")]),
        ("a 'x y' \"z $N\"; N=1 b $N", [("a", "x y", "z $N"), ("b", "$N")]),
        ("N=1; b $N ${M:-2} ${N}x", [("b", "1", "2", "1x")]),
        ("a d#5 # comment\nb", [("a", "d#5"), ("b",)]),
        ('W="x y"; a $W "$W"', [("a", "x", "y", "x y")]),
        ("L=(p 'q r'); a ${L[@]} \"${L[@]}\"", [("a", "p", "q", "r", "p", "q r")]),
        ("a $(hostname) `id`", [("a", "$(hostname)", "`id`")]),
        ("a >x 2>&1 && b", [("a",), ("b",)]),
        ("a '' b", [("a", "", "b")]),
        ('a "{\\"k\\": 1}"', [("a", '{"k": 1}')]),
    ],
)
def test_a_script_is_read_as_a_shell_reads_it(text, words):
    assert [command.words for command in statements.read(text).commands] == words


def test_commands_behind_other_programs_are_found_and_text_is_no_command(capsys, script):
    """A here-document is text; arrays grow; `bash -c`, torchrun and a container's command are read."""
    text = written(capsys, script(ODD))
    jobs = list(yaml.safe_load_all(text))
    found = [(job["spec"]["task"], job["spec"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) for job in jobs]
    assert found == [("sft", "8"), ("sft", "4"), ("pt", "8")]
    assert jobs[0]["spec"]["numNodes"] == 2
    assert jobs[1]["spec"]["args"]["lr"] == 1e-4
    assert jobs[1]["spec"]["args"]["dataset"] == ["/data/a.jsonl"]
    assert all(isinstance(manifest.parse(job), Job) for job in jobs)


@pytest.mark.parametrize(
    "lines",
    [
        'CMD="megatron sft @"; echo $CMD; $CMD',
        'CMD="megatron sft @"\necho "+ $CMD"\neval "$CMD"',
        "if true; then NPROC_PER_NODE=8 megatron sft @; fi || echo megatron sft @",
        "printf '%s ' megatron sft @; /bin/echo megatron sft @; ./with_environment.sh megatron sft @",
        "bash -euo pipefail -c 'megatron sft @'; echo bash -c 'megatron sft @'",
        "$LAUNCHER megatron sft @; grep swift export log.txt; mkdir -p swift export; sudo mkdir -p swift export",
        "srun mkdir -p swift export; srun timeout -k 5 60 megatron sft @; git clone megatron sft",
        "kubectl exec master -- megatron sft @; kubectl exec master -- echo megatron sft @",
        "accelerate launch --num_machines 1 swift/cli/_megatron/sft.py @; conda run -n a echo megatron sft",
    ],
)
def test_a_command_that_is_only_mentioned_is_not_read_as_one(capsys, script, lines):
    """The other ones run it, whatever stands before it."""
    text = written(capsys, script(lines.replace("@", f"{RUN} {BATCH}")))
    assert spec_of(text)["task"] == "sft"


@pytest.mark.parametrize("words", ["grep swift export log.txt", "mkdir -p swift export", "echo megatron sft --model m"])
def test_what_only_mentions_a_command_starts_no_training(capsys, words):
    assert "no known training command" in written(capsys, words, code=2)


@pytest.mark.parametrize(
    "lines",
    [
        'docker run -e NPROC_PER_NODE=8 image bash -c "megatron sft @"',
        'docker run -eNPROC_PER_NODE=8 -e OTHER=1 image bash -c "cd /x && megatron sft @"',
        "srun --export=ALL,NPROC_PER_NODE=8,OTHER=1 megatron sft @",
        "docker run --env=NPROC_PER_NODE=8 image megatron sft @",
        "export MODEL=/m NPROC_PER_NODE=8; srun bash -c 'megatron sft @'",
        "export NPROC_PER_NODE=8\nbash <<'EOF'\nmegatron sft @\nEOF\necho done",
        "export NPROC_PER_NODE=8\nsrun --nodes=1 bash -s -- a << EOF | tee log.txt\nMODEL=/m\nmegatron sft @\nEOF",
        "sudo -E env NPROC_PER_NODE=8 bash -l -c 'megatron sft @'",
    ],
)
def test_what_an_outer_command_sets_holds_for_the_command_within(capsys, script, lines):
    model = "$MODEL" if "MODEL=" in lines else "/m"
    spec = spec_of(written(capsys, script(lines.replace("@", f"--model {model} --dataset /d/x.jsonl {BATCH}"))))
    assert (spec["args"]["model"], spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) == ("/m", "8")


def test_the_arguments_of_a_script_or_function_are_named_and_not_swallowed(capsys, script):
    text = written(capsys, script(ODD))
    assert "# Left out: $@: the arguments of the script" in text
    assert "'$@'" not in text


def test_a_training_behind_an_unknown_program_is_reported(capsys, script):
    lines = (f"megatron sft {RUN}", f"launch-it --gpus 8 megatron pt {RUN}", f"echo megatron sft {RUN}")
    assert main(["from-args", str(script("\n".join(lines)))]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("kind: MegatronTrainJob") == 1
    (told,) = [line for line in captured.err.splitlines() if "not translated" in line]
    assert "not translated: launch-it --gpus 8 megatron pt" in told
    assert "pass the training command by itself" in told


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
