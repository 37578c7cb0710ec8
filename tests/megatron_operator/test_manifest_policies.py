"""mtj from-args: what other operators' manifests say of a job beside its command and its volumes."""

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job

RUN = "megatron sft --model /m/x --dataset a.jsonl --max_epochs 1 --global_batch_size 32"
POD = {"containers": [{"name": "c", "command": ["bash", "-c", RUN], "resources": {"limits": {"nvidia.com/gpu": 8}}}]}
ENDS = {"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 30}


@pytest.fixture
def translate(tmp_path, capsys):
    """translate(kind, spec, metadata): (the manifest, what is told)."""

    def run(kind: str, spec: dict, **metadata) -> tuple[dict, str]:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({"kind": kind, "metadata": {"name": "tune", **metadata}, "spec": spec}))
        assert main(["from-args", str(path)]) == 0
        captured = capsys.readouterr()
        written = yaml.safe_load(captured.out)
        assert isinstance(manifest.parse(written), Job), manifest.parse(written)
        return written, captured.err

    return run


def of_kind(kind: str, policy: dict, pod: dict = POD, **template) -> dict:
    """The spec of a job of this kind with this policy."""
    whole = {"spec": pod, **template}
    match kind:
        case "PyTorchJob":
            return {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": whole}}, "runPolicy": policy}
        case "TrainJob":
            return {"trainer": {"numNodes": 1, "command": ["bash", "-c", RUN]}, **policy}
        case "Pod":
            return {**pod, **policy}
    return {"template": whole, **policy}


@pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
def test_the_end_of_a_job_and_its_restarts_are_carried_over(kind, translate):
    written, err = translate(kind, of_kind(kind, {**ENDS, "backoffLimit": 0}))
    expected = {"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 30, "ttlPolicy": "DeleteJob"}
    assert (written["spec"]["runPolicy"], written["spec"]["failurePolicy"]) == (expected, {"maxRestarts": 0})
    assert "counterparts" not in err


def test_what_is_left_of_a_policy_is_named(translate):
    policy = {"cleanPodPolicy": "None", "schedulingPolicy": {"minAvailable": 2}}
    written, err = translate("PyTorchJob", of_kind("PyTorchJob", policy))
    assert written["spec"]["runPolicy"] == {"cleanPodPolicy": "None"}
    assert "Left out: runPolicy.schedulingPolicy of the PyTorchJob: docs/migrating.md names the counterparts" in err


def test_a_deadline_of_a_pod_is_one_of_the_job(translate):
    written, err = translate("Pod", of_kind("Pod", {"activeDeadlineSeconds": 60}))
    assert written["spec"]["runPolicy"] == {"activeDeadlineSeconds": 60}
    assert "activeDeadlineSeconds" not in err


@pytest.mark.parametrize("kind", ["PyTorchJob", "Job", "TrainJob"])
def test_a_suspended_job_stays_so_unless_a_queue_starts_it(kind, translate):
    written, _ = translate(kind, of_kind(kind, {"suspend": True}))
    assert written["spec"]["suspend"] is True
    queue = {"kueue.x-k8s.io/queue-name": "gpus"}
    written, err = translate(kind, of_kind(kind, {"suspend": True}), labels={**queue, "team": "a"})
    assert "suspend" not in written["spec"]
    assert written["metadata"]["labels"] == queue
    assert f"suspend of the {kind}: its queue starts the job" in err
    assert f"labels and annotations team of the {kind}: add them to metadata if they matter" in err


def test_pods_keep_their_metadata_and_network(translate):
    pod = {**POD, "hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", "shareProcessNamespace": True}
    own = {"annotations": {"sidecar.istio.io/inject": "false"}, "labels": {"cost": "a"}, "name": "x"}
    written, err = translate("Job", of_kind("Job", {}, pod, metadata=own))
    assert written["spec"]["podTemplate"]["metadata"] == {"annotations": own["annotations"], "labels": own["labels"]}
    assert written["spec"]["network"] == {"hostNetwork": True}
    assert "Left out: shareProcessNamespace of the pod" in err


def test_relative_paths_start_in_the_folder_of_the_container(translate):
    mount = {"name": "w", "mountPath": "/work"}
    container = {**POD["containers"][0], "workingDir": "/work/", "volumeMounts": [mount]}
    pod = {"containers": [container], "volumes": [{"name": "w", "persistentVolumeClaim": {"claimName": "w"}}]}
    written, err = translate("Job", of_kind("Job", {}, pod))
    assert written["spec"]["args"]["dataset"] == ["/work/a.jsonl"]
    assert "workingDir" not in err


def test_each_variable_is_there_once_with_the_value_that_the_command_sees(translate):
    script = f"export HF_HOME=/own NCCL_DEBUG=INFO OMP_NUM_THREADS=4\n{RUN}"
    env = [{"name": "HF_HOME", "value": "/first"}, {"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "A", "value": "1"}]
    pod = {"containers": [{**POD["containers"][0], "command": ["bash", "-c", script], "env": env}]}
    spec = translate("Job", of_kind("Job", {}, pod))[0]["spec"]
    assert [(each["name"], each["value"]) for each in spec["env"]] == [
        ("HF_HOME", "/own"),
        ("A", "1"),
        ("OMP_NUM_THREADS", "4"),
    ]
    assert spec["network"]["ncclEnv"] == {"NCCL_DEBUG": "INFO"}


def test_a_job_of_volcano_stays_a_gang_in_its_queue(translate):
    task = {"replicas": 2, "name": "w", "template": {"spec": POD}}
    spec = {
        "minAvailable": 2,
        "schedulerName": "volcano",
        "queue": "gpus",
        "maxRetry": 5,
        "tasks": [task],
        "plugins": {},
    }
    written, err = translate("Job", spec)
    assert written["spec"]["scheduling"] == {"gang": "Volcano", "queue": "gpus"}
    assert (written["spec"]["failurePolicy"], written["spec"]["numNodes"]) == ({"maxRestarts": 5}, 2)
    assert "Left out: plugins of the Job: docs/migrating.md names the counterparts" in err
    written, _ = translate("Job", {**spec, "minAvailable": 1})
    assert written["spec"]["scheduling"]["minMember"] == 1
