"""mtj from-args: manifests of other operators keep their nodes, resources, volumes and environment."""

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job

RUN = "--model /mnt/shared/m --dataset /mnt/shared/d.jsonl --max_epochs 1 --global_batch_size 32"
VOLUME = {"name": "shared", "persistentVolumeClaim": {"claimName": "team"}}
MOUNT = {"name": "shared", "mountPath": "/mnt/shared"}
GPUS = {"limits": {"nvidia.com/gpu": 8}}


def pod(*command, mounts=(), volumes=(), name="trainer", **container) -> dict:
    words = {"command": list(command), "image": "own:1", "resources": GPUS, "volumeMounts": [MOUNT, *mounts]}
    return {"containers": [{"name": name, **words, **container}], "volumes": [VOLUME, *volumes]}


def in_shell(script: str) -> tuple[str, ...]:
    return ("bash", "-euxc", script)


def job_object(kind: str, spec: dict) -> dict:
    return {"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "tune", "namespace": "team"}, "spec": spec}


def replicas(spec: dict, count: int) -> dict:
    return {"replicas": count, "template": {"spec": spec}}


@pytest.fixture
def translate(tmp_path, capsys):
    """translate(*objects): (spec of the one job, its text, what is told)."""

    def run(*objects) -> tuple[dict, str, str]:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump_all(objects))
        assert main(["from-args", str(path)]) == 0
        captured = capsys.readouterr()
        written = yaml.safe_load(captured.out)
        assert isinstance(manifest.parse(written), Job), manifest.parse(written)
        assert (written["metadata"]["name"], written["metadata"]["namespace"]) == ("tune", "team")
        return written["spec"], captured.out, captured.err

    return run


TRAINS = pod(*in_shell(f"megatron sft {RUN}"))
WORDS = pod("torchrun", "swift/cli/_megatron/sft.py", args=RUN.split())
PAIR = {"parallelism": 2, "template": {"spec": TRAINS}}
OBJECTS = {
    "Job": job_object("Job", {"template": {"spec": TRAINS}, "completions": 4, "parallelism": 4, "backoffLimit": 0}),
    "PyTorchJob": job_object(
        "PyTorchJob", {"pytorchReplicaSpecs": {"Master": replicas(TRAINS, 1), "Worker": replicas(TRAINS, 3)}}
    ),
    "PyTorchJob, arguments apart": job_object(
        "PyTorchJob", {"pytorchReplicaSpecs": {"Master": replicas(WORDS, 1), "Worker": replicas(WORDS, 3)}}
    ),
    "JobSet": job_object("JobSet", {"replicatedJobs": [{"replicas": 2, "template": {"spec": PAIR}}]}),
    "MPIJob": job_object(
        "MPIJob",
        {
            "slotsPerWorker": 8,
            "mpiReplicaSpecs": {
                "Launcher": replicas(pod("mpirun", "-np", "32", "megatron", "sft", *RUN.split(), resources={}), 1),
                "Worker": replicas(pod("/usr/sbin/sshd", "-De"), 4),
            },
        },
    ),
    "Volcano": job_object("Job", {"queue": "q", "tasks": [replicas(TRAINS, 1), replicas(TRAINS, 3)]}),
    "LeaderWorkerSet": job_object(
        "LeaderWorkerSet", {"leaderWorkerTemplate": {"size": 4, "workerTemplate": {"spec": TRAINS}}}
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_job_of_another_kind_keeps_its_pods(translate, name):
    spec, text, _ = translate(OBJECTS[name])
    assert spec["args"] == {
        "model": "/mnt/shared/m",
        "dataset": ["/mnt/shared/d.jsonl"],
        "max_epochs": 1,
        "global_batch_size": 32,
    }
    assert (spec["numNodes"], spec["resourcesPerNode"]) == (4, GPUS)
    assert (spec["volumes"], spec["volumeMounts"]) == ([VOLUME], [MOUNT])
    assert "# Left out: image own:1: the trainer has its own image." in text


@pytest.mark.parametrize(
    ("words", "mount"),
    [
        (("bash", "/scripts/train.sh", "1e-4"), {"name": "scripts", "mountPath": "/scripts"}),
        (in_shell("/scripts/train.sh 1e-4"), {"name": "scripts", "mountPath": "/scripts/"}),
        (
            ("sh", "/run/tune.sh", "1e-4"),
            {"name": "scripts", "mountPath": "/run/tune.sh", "subPath": "train.sh"},
        ),
    ],
    ids=["a file", "from a shell", "a sub path"],
)
def test_a_script_of_a_config_map_is_read(translate, words, mount):
    """With the arguments that the container gives it and the variables of its environment."""
    text = f'. $(dirname "$0")/common.sh\nmegatron sft {RUN} --lr $1 --seed $SEED\n'
    scripts = {"kind": "ConfigMap", "metadata": {"name": "scripts"}, "data": {"train.sh": text, "common.sh": "X=1\n"}}
    volume = {"name": "scripts", "configMap": {"name": "scripts"}}
    env = [{"name": "SEED", "value": "7"}]
    spec, _, _ = translate(
        scripts, job_object("Job", {"template": {"spec": pod(*words, mounts=[mount], volumes=[volume], env=env)}})
    )
    assert (spec["args"]["lr"], spec["args"]["seed"]) == (1e-4, 7)


def test_variables_of_kubernetes_and_of_the_shell_are_replaced(translate):
    env = [
        {"name": "LR", "value": "0.0001"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    spec, _, _ = translate(job_object("Pod", pod("megatron", "sft", *RUN.split(), "--lr", "$(LR)", env=env)))
    assert spec["args"]["lr"] == 1e-4
    assert env[1] in spec["env"]


def test_what_has_no_place_is_reported_in_the_manifest(translate):
    spec = {**TRAINS, "hostIPC": True, "dnsPolicy": "Default", "nodeSelector": {"gpu": "h100"}}
    spec["containers"] = [{**TRAINS["containers"][0], "securityContext": {}}, {"name": "logs", "image": "own:2"}]
    manifest_of_job = job_object(
        "PyTorchJob", {"pytorchReplicaSpecs": {"Master": replicas(spec, 1)}, "runPolicy": {"schedulingPolicy": {}}}
    )
    found, text, err = translate(manifest_of_job, job_object("Job", {"template": {"spec": TRAINS}}))
    assert found["podTemplate"] == {"spec": {"nodeSelector": {"gpu": "h100"}}}
    for part in (
        "containers logs",
        "dnsPolicy, hostIPC of the pod",
        "securityContext of the container",
        "runPolicy.schedulingPolicy of",
    ):
        assert part in text
    assert "not translated: Job beside the first one" in err


def test_a_trainjob_says_what_its_runtime_hides(translate):
    trainer = {"numNodes": 2, "numProcPerNode": 4, "command": ["megatron", "sft"], "args": RUN.split()}
    trainer["resourcesPerNode"] = {"limits": {"nvidia.com/gpu": "4"}}
    spec, text, _ = translate(job_object("TrainJob", {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer}))
    assert spec["numNodes"] == 2
    assert "what the training runtime torch-distributed adds (image, volumes) is not in this manifest" in text
