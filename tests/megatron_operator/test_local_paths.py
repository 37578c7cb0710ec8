"""cluster/local/paths and cli/run: mounts stand for folders, and what one machine cannot do is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_operator.cli.run import ignored_here
from megatron_operator.cluster.local import paths as local_paths
from megatron_operator.cluster.local.paths import Folders, NoSuchVolume
from megatron_operator.core.desired.pods import pod
from tests.support.operator.job_values import job

PATHS = {"/data": "/home/me/data", "/data/models": "/big/models", "/checkpoints": "/state/c"}
FOLDERS = Folders(volumes=Path("/state/volumes"), scratch=Path("/state/pod"), bound={"bound": Path("/here")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", "/home/me/data"),
        ("/data/x.jsonl#500", "/home/me/data/x.jsonl#500"),
        ("/data/models/m", "/big/models/m"),
        ("/database/x", "/database/x"),
        ("/mnt/data/x", "/mnt/data/x"),
        ("--save=/checkpoints/a", "--save=/state/c/a"),
        ("/data/a:/checkpoints", "/home/me/data/a:/state/c"),
        ("cp '/data/a' /checkpoints", "cp '/home/me/data/a' /state/c"),
        ("file:///data/x", "file:///data/x"),
        ("", ""),
    ],
)
def test_a_path_below_a_mount_becomes_the_folders(text, expected):
    assert local_paths.rewritten(text, PATHS) == expected


def test_without_mounts_a_text_stays():
    assert local_paths.rewritten("/data/x", {}) == "/data/x"


def test_yaml_is_rewritten_inside_its_values_only():
    text = yaml.safe_dump({"/data": 1, "dataset": ["/data/a", "org/b"], "lr": 1e-5, "kwargs": {"path": "/data/c"}})
    assert yaml.safe_load(local_paths.rewritten_yaml(text, PATHS)) == {
        "/data": 1,
        "dataset": ["/home/me/data/a", "org/b"],
        "lr": 1e-5,
        "kwargs": {"path": "/home/me/data/c"},
    }


@pytest.mark.parametrize(
    ("volume", "folder"),
    [
        ({"name": "v", "persistentVolumeClaim": {"claimName": "disk"}}, "/state/volumes/disk"),
        ({"name": "v", "persistentVolumeClaim": {"claimName": "bound"}}, "/here"),
        ({"name": "bound", "nfs": {"server": "s", "path": "/"}}, "/here"),
        ({"name": "v", "hostPath": {"path": "/var/x"}}, "/var/x"),
        ({"name": "v", "emptyDir": {}}, "/state/pod/v"),
        ({"name": "mtj-checkpoint", "emptyDir": {}}, "/state/volumes/mtj-checkpoint"),
    ],
    ids=["claim", "bound claim", "bound volume", "host path", "scratch", "checkpoint without claim"],
)
def test_each_kind_of_volume_has_its_folder(volume, folder):
    assert local_paths.folder_of(volume, FOLDERS) == Path(folder)


def test_shared_memory_needs_no_folder():
    assert local_paths.folder_of({"name": "m", "emptyDir": {"medium": "Memory"}}, FOLDERS) is None


def test_a_volume_that_cannot_be_here_says_how_to_bind_it():
    with pytest.raises(NoSuchVolume, match=r"volume v \(nfs\) does not exist here; .* --volume v=FOLDER"):
        local_paths.folder_of({"name": "v", "nfs": {}}, FOLDERS)


def test_the_mounts_of_a_pod_become_a_mapping():
    spec = {
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "bound"}}],
        "volumeMounts": [{"name": "data", "mountPath": "/models", "subPath": "m"}],
    }
    built = pod(job(spec), 0, 0)["spec"]
    config = {"tune-a0-args": Path("/state/config")}
    assert local_paths.mapping(built, built["containers"][0], FOLDERS, config=config) == {
        "/etc/megatron": "/state/config",
        "/checkpoints": "/state/volumes/disk",
        "/models": "/here/m",
    }


def test_what_has_no_effect_on_one_machine_is_said():
    spec = {
        "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "A", "value": "1"}],
        "envFrom": [{"secretRef": {"name": "s"}}],
        "podTemplate": {"spec": {"containers": [{"name": "trainer"}, {"name": "proxy"}]}},
        "scheduling": {"gang": "Native", "spares": 1},
        "failurePolicy": {"nodeExclusion": {}},
        "runPolicy": {"ttlSecondsAfterFinished": 5},
    }
    assert ignored_here(job(spec)) == (
        "spec.env KEY: valueFrom is not read here; this shell's variable with that name is used",
        "envFrom is not read here; the variables of this shell are used",
        "container proxy is not started here",
        "queues and gang scheduling have no effect here; all pods start at once",
        "scheduling.spares has no effect here; one machine has no node to spare",
        "failurePolicy.nodeExclusion has no effect here; there is no other node",
        "ttlSecondsAfterFinished has no effect here; the state folder stays",
    )
    assert ignored_here(job()) == ()
