"""desired/: what each part of a manifest does to the objects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes import discovery
from megatron_operator.core.desired import command, gang, service
from megatron_operator.core.desired.config_map import config_map
from megatron_operator.core.desired.overlay import merged
from megatron_operator.core.desired.pods import pod, pods
from megatron_operator.core.desired.quantity import amount, multiplied, total
from megatron_operator.core.desired.volumes import claim
from megatron_operator.core.job import ProgressPush
from megatron_trainjob import exit_codes
from megatron_trainjob.exit_codes import ExitCode
from tests.support.operator.job_values import ARGS, job


def variables(built):
    return {entry["name"]: entry["value"] for entry in trainer(built)["env"]}


def trainer(built):
    return next(each for each in built["spec"]["containers"] if each["name"] == "trainer")


def test_every_pod_knows_its_place():
    spec = {"numNodes": 3, "nprocPerNode": 2, "args": {**ARGS, "global_batch_size": 12}}
    environments = [variables(each) for each in pods(job(spec), 4)]
    assert [each["NODE_RANK"] for each in environments] == ["0", "1", "2"]
    assert {name: environments[2][name] for name in environments[2] if not name.startswith("MTJ_")} == {
        "MASTER_ADDR": "tune-a4-master-0.tune",
        "MASTER_PORT": "29500",
        "NNODES": "3",
        "NODE_RANK": "2",
        "NPROC_PER_NODE": "2",
    }


def test_a_program_of_the_users_own_knows_its_place_under_torchruns_names_and_the_addresses_of_all():
    own = job({"numNodes": 3, "nprocPerNode": 2, "args": {**ARGS, "global_batch_size": 12}, "command": ["torchrun"]})
    built = pod(own, 4, 2)
    read_by_programs = {name: variables(built)[name] for name in ("WORLD_SIZE", "RANK", "PYTHONUNBUFFERED")}
    assert read_by_programs == {"WORLD_SIZE": "6", "RANK": "2", "PYTHONUNBUFFERED": "1"}
    torchruns = {name: value for name, value in variables(built).items() if name.startswith("PET_")}
    assert torchruns == {
        "PET_MASTER_ADDR": "tune-a4-master-0.tune",
        "PET_MASTER_PORT": "29500",
        "PET_NNODES": "3",
        "PET_NODE_RANK": "2",
        "PET_NPROC_PER_NODE": "2",
    }
    assert service.selector(own, 4).items() <= built["metadata"]["labels"].items()


def test_the_service_has_the_address_of_the_master_of_this_attempt_alone():
    """Each pod of a service costs writes of its addresses as it starts, which no rank asks for."""
    selected = service.selector(job(), 4).items()
    assert [selected <= each["metadata"]["labels"].items() for each in pods(job(), 4)] == [True, False]
    assert not selected <= pod(job(), 3, 0)["metadata"]["labels"].items()


def test_the_trainer_learns_who_it_is_and_how_to_resume():
    spec = {"checkpoint": {"pvc": {"claimName": "c"}, "resume": "Required", "onTermination": {"save": False}}}
    built = variables(pod(job(spec), 2, 0))
    assert {name: value for name, value in built.items() if name.startswith("MTJ_")} == {
        "MTJ_JOB_NAME": "tune",
        "MTJ_JOB_UID": "uid-1",
        "MTJ_RESTART_ATTEMPT": "2",
        "MTJ_RESUME": "Required",
        "MTJ_SAVE_ON_TERM": "0",
    }
    assert "MTJ_SAVE_ON_TERM" not in variables(pod(job(), 0, 0)), "the trainer saves unless told otherwise"


def test_only_a_job_that_says_so_adopts_the_folder_of_another():
    adopting = job({"checkpoint": {"adopt": True}})
    assert [variables(each)["MTJ_ADOPT"] for each in pods(adopting, 0)] == ["1"] * adopting.num_nodes
    assert all("MTJ_ADOPT" not in variables(each) for each in pods(job({}), 0))


def test_arguments_are_handed_over_under_canonical_names_with_a_stable_save_folder():
    value = job({"args": {**ARGS, "output_dir": "/checkpoints/here", "lr": 1e-5}})
    built = config_map(value, 1)
    assert (built["metadata"]["name"], built["immutable"]) == ("tune-a1-args", True)
    assert yaml.safe_load(built["data"]["args.yaml"]) == {
        **ARGS,
        "lr": 1e-5,
        "save": "/checkpoints/here",
        "add_version": False,
    }


def test_save_defaults_to_the_jobs_folder_on_the_checkpoint_volume():
    spec = {"checkpoint": {"pvc": {"claimName": "c"}, "mountPath": "/ckpt", "subPath": "runs/$(job)"}}
    assert yaml.safe_load(config_map(job(spec), 0)["data"]["args.yaml"])["save"] == "/ckpt/runs/tune"


def test_arguments_that_are_newer_than_the_operator_pass_as_they_are():
    data = config_map(job({"extraArgs": {"brand_new": "7"}}), 0)["data"]["args.yaml"]
    assert yaml.safe_load(data)["brand_new"] == "7"


def test_other_arguments_have_another_hash():
    assert job().args_hash == job().args_hash
    assert job().args_hash != job({"args": {**ARGS, "seed": 7}}).args_hash


def test_initializers_fetch_on_the_master_and_are_waited_for_on_the_workers():
    spec = {"initializers": [{"name": "data", "storageUri": "hf://datasets/a/b", "targetPath": "/checkpoints/data"}]}
    master, worker = pods(job(spec), 0)
    fetch, wait = master["spec"]["initContainers"][0], worker["spec"]["initContainers"][0]
    assert fetch["command"][2:] == [
        command.FETCH_ONCE,
        "data",
        "hf",
        "download",
        "a/b",
        "--repo-type",
        "dataset",
        "--local-dir",
        "/checkpoints/data",
    ]
    assert wait["command"][2:] == [command.WAIT_FOR_FETCH]
    assert fetch["env"] == wait["env"]


def test_another_source_has_another_marker():
    def marker(uri):
        spec = {"initializers": [{"name": "data", "storageUri": uri, "targetPath": "/checkpoints/data"}]}
        return command.marker(job(spec).initializers[0])

    assert marker("hf://a/b") != marker("hf://a/c")


def test_a_template_is_laid_over_the_pod_and_a_role_template_over_that():
    sidecar = {"name": "sidecar", "image": "s"}
    spec = {
        "podTemplate": {"spec": {"nodeSelector": {"a": "pod", "b": "pod"}, "containers": [sidecar]}},
        "workerTemplate": {"spec": {"nodeSelector": {"b": "worker"}}},
    }
    master, worker = pods(job(spec), 0)
    assert master["spec"]["nodeSelector"] == {"a": "pod", "b": "pod"}
    assert worker["spec"]["nodeSelector"] == {"a": "pod", "b": "worker"}
    assert [each["name"] for each in master["spec"]["containers"]] == ["trainer", "sidecar"]


def test_merging_changes_neither_side():
    generated = {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}], "tolerations": [1]}}
    overlay = {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}]}], "tolerations": [2]}}
    before = yaml.safe_dump([generated, overlay])
    assert merged(generated, overlay) == {
        "spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}]}], "tolerations": [1, 2]}
    }
    assert yaml.safe_dump([generated, overlay]) == before


def test_a_list_without_names_is_replaced():
    assert merged({"command": ["a", "b"]}, {"command": ["c"]}) == {"command": ["c"]}


def test_pods_satisfy_pod_security_restricted():
    spec = pod(job(), 0, 0)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert trainer({"spec": spec})["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_a_save_on_termination_has_its_time_before_the_kill():
    def grace(**termination):
        spec = {"checkpoint": {"pvc": {"claimName": "c"}, "onTermination": termination}}
        return pod(job(spec), 0, 0)["spec"]["terminationGracePeriodSeconds"]

    assert (grace(gracePeriodSeconds=100), grace(save=False)) == (115, 30)


def test_ones_own_shared_memory_replaces_ours():
    own = {
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
        "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}],
    }
    mounted = [each["name"] for each in trainer(pod(job(own), 0, 0))["volumeMounts"]]
    assert mounted == ["mtj-args", "mtj-checkpoint", "memory"]


IN_MEMORY = {"checkpoint": {"pvc": {"claimName": "c"}, "memory": {"intervalIterations": 5, "sizeLimit": "16Gi"}}}


def test_checkpoints_in_memory_have_a_volume_that_the_trainer_receives():
    made = pod(job(IN_MEMORY), 0, 0)
    assert {"name": "mtj-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in made["spec"]["volumes"]
    assert {"name": "mtj-memory", "mountPath": "/run/mtj-memory"} in trainer(made)["volumeMounts"]
    told = {each["name"]: each.get("value") for each in trainer(made)["env"]}
    assert told["MTJ_MEMORY_CHECKPOINT_FOLDER"] == "/run/mtj-memory"
    assert told["MTJ_MEMORY_CHECKPOINT_INTERVAL"] == "5"
    assert told["MTJ_MEMORY_CHECKPOINT_BYTES"] == str(16 * 2**30)
    without = pod(job({}), 0, 0)
    assert not any("memory" in volume["name"] for volume in without["spec"]["volumes"])
    assert not any("MEMORY" in each["name"] for each in trainer(without)["env"])


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"requests": {"memory": "16Gi"}}),
        ({"limits": {"cpu": 1, "memory": "64Gi"}}, {"limits": {"cpu": "1", "memory": "80Gi"}}),
        ({"requests": {"memory": "1G"}}, {"requests": {"memory": str(10**9 + 16 * 2**30)}}),
        (
            {"limits": {"memory": "8Gi"}, "requests": {"memory": "8Gi"}},
            {"limits": {"memory": "24Gi"}, "requests": {"memory": "24Gi"}},
        ),
    ],
)
def test_memory_for_checkpoints_is_asked_for_beside_the_trainers_own(given, asked):
    assert trainer(pod(job({**IN_MEMORY, "resourcesPerNode": given}), 0, 0))["resources"] == asked


def test_devices_for_rdma_are_added_to_the_limits():
    spec = {"network": {"rdma": {"resource": "rdma/ib", "count": 4}}, "resourcesPerNode": {"limits": {"cpu": 2}}}
    assert trainer(pod(job(spec), 0, 0))["resources"] == {"limits": {"rdma/ib": "4", "cpu": "2"}}


def test_a_job_on_the_host_network_has_a_port_of_its_own():
    spec = {"network": {"hostNetwork": True}}
    ports = {job(spec, uid=uid).network.master_port for uid in ("a", "b", "c")}
    assert len(ports) == 3
    assert all(20000 <= port < 30000 for port in ports)
    assert pod(job(spec), 0, 0)["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"


def test_kueue_sees_a_pod_group_of_this_attempt():
    value = job(labels={names.KUEUE_QUEUE: "team-a"})
    metadata = pod(value, 2, 1)["metadata"]
    assert metadata["labels"][names.KUEUE_GROUP_NAME] == "tune-a2"
    assert metadata["annotations"][names.KUEUE_GROUP_TOTAL] == "2"
    assert "schedulingGates" not in pod(value, 2, 1)["spec"]


def test_volcano_gets_a_group_with_all_resources():
    spec = {
        "scheduling": {"gang": "Volcano", "queue": "q", "topology": {"highestTierAllowed": 1}},
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": 8, "memory": "64Gi"}, "requests": {"cpu": "500m"}},
        "nprocPerNode": 1,
    }
    value = job(spec)
    assert gang.pod_group(value, 1)["spec"] == {
        "minMember": 2,
        "queue": "q",
        "minTaskMember": {"master": 1, "worker": 1},
        "networkTopology": {"mode": "hard", "highestTierAllowed": 1},
        "minResources": {"cpu": "1000m", "memory": "128Gi", "nvidia.com/gpu": "16"},
    }
    built = pod(value, 1, 1)
    assert built["spec"]["schedulerName"] == "volcano"
    assert built["metadata"]["annotations"][names.VOLCANO_GROUP_NAME] == "tune-a1"
    assert built["metadata"]["annotations"][names.VOLCANO_TASK] == "worker"


def test_coscheduling_gets_a_group_that_its_pods_name_by_label():
    spec = {"scheduling": {"gang": "Coscheduling", "schedulerName": "gangs", "scheduleTimeoutSeconds": 60}}
    value = job(spec)
    assert gang.pod_group(value, 0)["spec"] == {"minMember": 2, "scheduleTimeoutSeconds": 60}
    assert pod(value, 0, 0)["metadata"]["labels"][names.COSCHEDULING_GROUP] == "tune-a0"


def test_native_pods_name_their_group():
    value = job({"scheduling": {"gang": "Native", "topology": {"key": "rack"}}})
    assert gang.pod_group(value, 0)["apiVersion"] == "scheduling.k8s.io/v1beta1"
    assert gang.pod_group(value, 0)["spec"] == {
        "schedulingPolicy": {"gang": {"minCount": 2}},
        "schedulingConstraints": {"topology": [{"key": "rack"}]},
    }
    assert pod(value, 0, 0)["spec"]["schedulingGroup"] == {"podGroupName": "tune-a0"}


def test_a_claim_goes_with_the_job_only_where_that_is_asked_for():
    def owners(retain):
        template = {"spec": {"accessModes": ["ReadWriteMany"]}}
        value = job({"checkpoint": {"pvc": {"template": template}, "retainOnDelete": retain}})
        return [owner["uid"] for owner in claim(value)["metadata"].get("ownerReferences", ())]

    assert (owners(True), owners(False)) == ([], ["uid-1"])


def test_the_longest_names_still_fit_a_hostname():
    assert len(names.pod_name("a" * names.MAX_JOB_NAME_LENGTH, 999, 10_000)) <= 63


def test_quantities_are_exact():
    assert (amount("64Gi"), amount("500m") * 2, amount("1e3"), amount("8")) == (64 * 2**30, 1, 1000, 8)
    assert (total("64Gi", "0.5Gi"), total("1G", "1Gi"), total("8", "500m")) == ("64.5Gi", "2073741824", "8.5")
    assert (multiplied("64Gi", 4), multiplied("1.5", 2), multiplied("500m", 3)) == ("256Gi", "3.0", "1500m")


PUSHES = {"progress_push": ProgressPush(url="https://operator:8443", authority="CA"), "has_container_restarts": True}


def test_a_container_that_a_signal_ends_starts_again_where_the_cluster_knows_how():
    made = pod(replace(job(), **PUSHES), 0, 1)
    container = trainer(made)
    (rule,) = container["restartPolicyRules"]
    assert (container["restartPolicy"], rule["action"], rule["exitCodes"]["operator"]) == ("Never", "Restart", "In")
    assert {134, 137, 139} <= set(rule["exitCodes"]["values"])
    codes = {0, *ExitCode, *(exit_codes.ends_for_good(code) for code in rule["exitCodes"]["values"])}
    assert not codes & set(rule["exitCodes"]["values"]), "what a launcher returns on purpose"
    told = {each["name"]: each["value"] for each in container["env"]}
    assert {"name": "mtj-launcher", "mountPath": "/run/mtj-launcher"} in container["volumeMounts"]
    assert told["MTJ_ATTEMPT_FILE"] == "/run/mtj-launcher/attempt"


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        ({}, {**PUSHES, "has_container_restarts": False}),
        ({}, {**PUSHES, "progress_push": None}),
        ({"command": ["torchrun"]}, PUSHES),
        ({"failurePolicy": {"inPlaceRestart": False}}, PUSHES),
    ],
    ids=["an older cluster", "no reports", "another program", "switched off"],
)
def test_elsewhere_a_container_ends_with_its_pod(spec, known):
    made = pod(replace(job(spec), **known), 0, 1)
    assert not {"restartPolicy", "restartPolicyRules"} & trainer(made).keys()
    assert "mtj-launcher" not in {volume["name"] for volume in made["spec"]["volumes"]}
    assert "MTJ_ATTEMPT_FILE" not in {each["name"] for each in trainer(made)["env"]}


@pytest.mark.parametrize("code", [0, 1, 65, 79, 134, 137, 139, 143, 255])
def test_the_code_of_a_rank_is_found_in_that_of_its_launcher(code):
    assert exit_codes.of_rank(exit_codes.ends_for_good(code)) == code


@pytest.mark.parametrize(
    ("major", "minor", "knows"),
    [
        ("1", "34", False),
        ("1", "34+", False),
        ("1", "35", True),
        ("1", "35+", True),
        ("1", "40", True),
        ("", "", False),
    ],
)
def test_servers_before_1_35_are_not_given_rules_that_they_refuse(major, minor, knows):
    assert (discovery.version({"major": major, "minor": minor}) >= discovery.CONTAINER_RESTARTS) == knows
