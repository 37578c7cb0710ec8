"""mtj from-args: nodes and GPUs in files of launchers and in headers of batch systems; RayJob and GNU parallel."""

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job
from megatron_operator.translate import hosts

RUN = "--model /m/x --dataset /d/a.jsonl --max_epochs 1 --global_batch_size 48"
TRAIN = f"swift/cli/_megatron/sft.py {RUN}"
FILES = {
    "hosts": "# two machines\nworker-1 slots=8\nworker-2 slots=8\n",
    "machines": "a:4\nb:4\nc:4\n",
    "uneven": "a slots=8\nb slots=4\n",
    "accelerate.yaml": "num_machines: 2\nnum_processes: 16\nmixed_precision: bf16\n",
    "rates.txt": "1e-4\n2e-4\n",
}
SIZES = {
    "hosts of deepspeed": (f"deepspeed --hostfile hosts {TRAIN}", (2, "8")),
    "hosts, an equals sign": (f"deepspeed --hostfile=./hosts {TRAIN}", (2, "8")),
    "fewer GPUs of the hosts": (f"deepspeed --hostfile hosts --num_gpus 4 {TRAIN}", (2, "4")),
    "included GPUs": (f"deepspeed --hostfile hosts --include worker-1:0,1@worker-2:2,3 {TRAIN}", (2, "2")),
    "an included host": (f'deepspeed --hostfile hosts --include="worker-2" {TRAIN}', (1, "8")),
    "an excluded host": (f"deepspeed -H hosts --hostfile hosts --exclude worker-2 {TRAIN}", (1, "8")),
    "GPUs of this machine": (f"deepspeed --include localhost:0,1,3 {TRAIN}", (1, "3")),
    "hosts that the script writes": (
        f"cat > h <<END\nx slots=4\ny slots=4\nEND\ndeepspeed --hostfile h {TRAIN}",
        (2, "4"),
    ),
    "machines of mpirun": (f"mpirun --hostfile machines python {TRAIN}", (3, "4")),
    "machines of mpiexec": (f"mpiexec -np 6 -f machines python {TRAIN}", (3, "2")),
    "hosts with their slots": (f"mpirun -H a:4,b:4 python {TRAIN}", (2, "4")),
    "a configuration of accelerate": (f"accelerate launch --config_file accelerate.yaml {TRAIN}", (2, "8")),
    "options before a configuration": (
        f"accelerate launch --config_file accelerate.yaml --num_processes 8 {TRAIN}",
        (2, "4"),
    ),
    "tasks of Slurm": (
        f"#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-task=1\nsrun python {TRAIN}",
        (2, "8"),
    ),
    "tasks in all": (f"#SBATCH -N 2\n#SBATCH -n 8\nsrun python {TRAIN}", (2, "4")),
    "one task that starts the others": (
        f"#SBATCH --nodes=2 --ntasks-per-node=1\n#SBATCH --gres=nvme:1,gpu:h100:8\nsrun megatron sft {RUN}",
        (2, "8"),
    ),
    "trackable resources": (f"#SBATCH -N 2 --tres-per-node=gres/gpu:4\nsrun megatron sft {RUN}", (2, "4")),
    "chunks of PBS": (f"#PBS -l select=2:ncpus=64:ngpus=4\nmegatron sft {RUN}", (2, "4")),
}


@pytest.fixture
def translated(tmp_path, capsys):
    """translated(text): (the specs of the jobs, what was told), with FILES beside the script."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def run(text: str, name: str = "train.sh") -> tuple[list[dict], str]:
        (tmp_path / name).write_text(text)
        assert main(["from-args", str(tmp_path / name)]) == 0
        captured = capsys.readouterr()
        manifests = list(yaml.safe_load_all(captured.out))
        assert all(isinstance(manifest.parse(each), Job) for each in manifests)
        return [each["spec"] for each in manifests], captured.out + captured.err

    return run


def sizes(spec: dict) -> tuple[int, str]:
    return spec["numNodes"], spec["resourcesPerNode"]["limits"]["nvidia.com/gpu"]


@pytest.mark.parametrize("name", SIZES)
def test_nodes_and_gpus_are_found_where_the_launcher_has_them(translated, name):
    script, expected = SIZES[name]
    ((spec,), told) = translated(f"#!/bin/bash\n{script}\n")
    assert sizes(spec) == expected
    assert "cannot be counted" not in told


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (f"deepspeed --hostfile gone {TRAIN}", "--hostfile=gone"),
        (f"deepspeed --hostfile gone --num_gpus 4 {TRAIN}", "--hostfile=gone"),
        (f"mpirun --hostfile gone -np 16 python {TRAIN}", "--hostfile=gone"),
        (f"accelerate launch --config_file gone.yaml --num_processes 8 {TRAIN}", "--config_file=gone.yaml"),
        (f"deepspeed --hostfile uneven {TRAIN}", "--hostfile=uneven"),
        (f"accelerate launch --config_file ~/gone.yaml {TRAIN}", "--config_file=~/gone.yaml"),
        (f"torchrun --nnodes $N --nproc_per_node 8 {TRAIN}", "--nnodes=$N"),
    ],
)
def test_what_cannot_be_counted_is_named(translated, script, named):
    _, told = translated(f"{script}\n")
    assert f"cannot be counted from {named}: set numNodes and resourcesPerNode" in told


def test_what_a_header_says_needs_no_variable_of_the_batch_system(translated):
    header = "#SBATCH --nodes=2\n#SBATCH --gpus-per-node=8\n"
    launcher = "torchrun --nnodes $SLURM_NNODES --nproc_per_node $SLURM_GPUS_ON_NODE"
    ((spec,), told) = translated(f"#!/bin/bash\n{header}srun {launcher} {TRAIN}\n")
    assert sizes(spec) == (2, "8")
    assert "cannot be counted" not in told


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f'parallel -j1 "megatron sft {RUN} --lr {{}}" ::: 1e-4 2e-4', [(1e-4, None), (2e-4, None)]),
        (f"parallel -S a,b megatron sft {RUN} --lr {{1}} --seed {{2}} ::: 1e-4 2e-4 ::: 5", [(1e-4, 5), (2e-4, 5)]),
        (f"parallel megatron sft {RUN} --lr {{1}} --seed {{2}} ::: 1e-4 2e-4 :::+ 5 6", [(1e-4, 5), (2e-4, 6)]),
        (f"parallel megatron sft {RUN} --lr :::: rates.txt", [(1e-4, None), (2e-4, None)]),
        (f"parallel -a rates.txt megatron sft {RUN} --lr", [(1e-4, None), (2e-4, None)]),
        (f"cat rates.txt | parallel megatron sft {RUN} --seed {{#}} --lr {{}}", [(1e-4, 1), (2e-4, 2)]),
        (f"one() {{ megatron sft {RUN} --lr $1; }}\nexport -f one\nparallel one ::: 1e-4", [(1e-4, None)]),
    ],
)
def test_parallel_starts_one_job_for_each_combination(translated, script, expected):
    specs, told = translated(f"{script}\n")
    assert [(spec["args"]["lr"], spec["args"].get("seed")) for spec in specs] == expected
    assert "NOT CARRIED OVER" not in told


@pytest.mark.parametrize("launcher", ["pdsh -w node[1-2]", "clush -bw node[1-2]", "parallel -S node1 --onall"])
def test_a_command_for_other_hosts_is_read_and_they_are_named(translated, launcher):
    training = f"cd /x && NNODES=2 NPROC_PER_NODE=8 megatron sft {RUN}"
    ((spec,), told) = translated(f'{launcher} "{training}" {"--seed ::: 5" if "parallel" in launcher else ""}\n')
    assert sizes(spec) == (2, "8")
    assert f"Left out: its launcher: `{launcher}" in told


def ray_job(**spec) -> dict:
    def group(name: str, gpus: int) -> dict:
        limits = {"cpu": 8} | ({"nvidia.com/gpu": gpus} if gpus else {})
        container = {"name": name, "image": "ray:1", "resources": {"limits": limits}}
        mount = {"name": "shared", "mountPath": "/d"}
        claim = {"name": "shared", "persistentVolumeClaim": {"claimName": "team"}}
        pod = {"containers": [{**container, "volumeMounts": [mount]}], "volumes": [claim], "nodeSelector": {"a": name}}
        return {"replicas": 2, "template": {"spec": pod}}

    cluster = {"headGroupSpec": group("head", 0), "workerGroupSpecs": [group("cpus", 0), group("gpus", 8)]}
    body = {"rayClusterSpec": cluster, "shutdownAfterJobFinishes": True, **spec}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "tune"}, "spec": body}


def test_a_ray_jobs_command_keeps_the_pods_of_its_workers(translated):
    environment = "env_vars:\n  WANDB_PROJECT: tuning\npip: [x]\n"
    job = ray_job(entrypoint=f"NNODES=2 NPROC_PER_NODE=8 megatron sft {RUN}", runtimeEnvYAML=environment)
    ((spec,), told) = translated(yaml.safe_dump(job), "job.yaml")
    assert (spec["numNodes"], spec["resourcesPerNode"]["limits"]) == (2, {"cpu": 8, "nvidia.com/gpu": 8})
    assert spec["volumeMounts"][0] == {"name": "shared", "mountPath": "/d"}
    assert spec["podTemplate"]["spec"] == {"nodeSelector": {"a": "gpus"}}
    assert {"name": "WANDB_PROJECT", "value": "tuning"} in spec["env"]
    assert "Left out: 2 pods like this one: Ray starts the command in one of them" in told
    assert "Left out: pip of the runtime environment" in told
    assert "shutdownAfterJobFinishes" in told


def test_a_command_for_a_ray_cluster_that_is_there_is_read_too(translated):
    job = {"kind": "RayJob", "metadata": {"name": "tune"}, "spec": {"clusterSelector": {"a": "b"}}}
    job["spec"]["entrypoint"] = f"NPROC_PER_NODE=4 megatron sft {RUN}"
    ((spec,), told) = translated(yaml.safe_dump(job), "job.yaml")
    assert sizes(spec) == (1, "4")
    assert "clusterSelector of the RayJob" in told


def test_a_job_that_is_submitted_to_ray_is_read(translated):
    ((spec,), _) = translated(f"ray job submit --working-dir . -- NPROC_PER_NODE=8 megatron sft {RUN}\n")
    assert sizes(spec) == (1, "8")


@pytest.mark.parametrize(
    ("known", "include", "exclude", "left"),
    [
        ({"a": 8, "b": 8}, "", "", {"a": 8, "b": 8}),
        ({"a": 8, "b": 8}, "b:1", "", {"b": 1}),
        ({"a": 8, "b": 8}, "", "b:0,1", {"a": 8, "b": 6}),
        ({"a": 2, "b": 8}, "", "a:0,1", {"b": 8}),
        ({}, "c@d:0", "", {"c": None, "d": 1}),
    ],
)
def test_hosts_are_chosen_as_deepspeed_does(known, include, exclude, left):
    assert hosts.chosen(known, include, exclude) == left


def test_hosts_of_a_file_have_their_slots():
    text = "# none\n\na slots=4  # the first\nb max_slots=8\nc:2\nd\n"
    assert hosts.of_text(text) == {"a": 4, "b": 8, "c": 2, "d": None}


def test_what_the_comments_say_is_left_out_is_written_to_standard_error_too(tmp_path, capsys):
    script = f"mpirun --hostfile gone -np 16 python {TRAIN} --save $SAVE --hub_strategy end\n"
    (tmp_path / "train.sh").write_text(script)
    assert main(["from-args", str(tmp_path / "train.sh")]) == 0
    captured = capsys.readouterr()
    comments = [line[2:] for line in captured.out.splitlines() if line.startswith("# ")]
    told = [line for line in comments if "Left out" in line or "cannot be counted" in line]
    assert len(told) >= 3
    assert [line for line in told if line not in captured.err] == []
