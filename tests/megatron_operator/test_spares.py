"""Spare pods: when they are created and deleted, what they are, and that nothing else about a job notices them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.desired import service, workload
from megatron_operator.core.desired.pods import pod as worker
from megatron_operator.core.desired.quantity import amount
from megatron_operator.core.desired.spares import spare
from megatron_operator.core.observe import observe
from megatron_operator.core.status import fitting
from megatron_operator.timestamp import to_text
from tests.support.operator.job_values import (
    NOW,
    RUNNING_STATUS,
    conditions,
    failed,
    job,
    kinds,
    pod,
    seen,
)

TWO = {"scheduling": {"spares": 2}, "failurePolicy": {"backoffSeconds": {"initial": 0}}}
NAMES = tuple(names.spare_name("tune", 0, index) for index in (0, 1))


def held(index=0, *, attempt=0, phase="Running", **fields):
    """A spare as it is seen."""
    place = {"name": names.spare_name("tune", attempt, index), "uid": f"spare-{attempt}-{index}", "role": "spare"}
    return replace(pod(0, attempt=attempt, phase=phase), **{**place, "index": index, **fields})


def test_spares_are_created_once_the_gang_has_its_nodes():
    unplaced = pod(1, phase="Pending", node="", scheduled_at=None)
    assert kinds(reconcile.plan(job(TWO), seen(pod(0), unplaced), NOW)) == []
    plan = reconcile.plan(job(TWO), seen(pod(0), pod(1)), NOW)
    assert kinds(plan) == [("Pod", name) for name in NAMES]
    both = replace(seen(pod(0), pod(1)), spares=(held(0), held(1)))
    assert kinds(reconcile.plan(job(TWO), both, NOW)) == []


def test_a_spare_has_the_resources_and_place_of_a_worker_and_nothing_else():
    more = {
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": "8"}},
        "podTemplate": {"spec": {"nodeSelector": {"pool": "gpu"}, "containers": [{"name": "proxy", "image": "x"}]}},
        "network": {"rdma": {"resource": "rdma/ib"}},
    }
    spec = {**TWO, **more, "scheduling": {**TWO["scheduling"], "gang": "Native", "priorityClassName": "high"}}
    made, like = spare(job(spec), 0, 1), worker(job(spec), 0, 1)
    (container,) = made["spec"]["containers"]
    assert container["resources"] == like["spec"]["containers"][0]["resources"]
    assert (made["spec"]["nodeSelector"], made["spec"]["priorityClassName"]) == ({"pool": "gpu"}, "high")
    assert made["spec"]["securityContext"] == like["spec"]["securityContext"]
    assert not {"volumes", "initContainers", "schedulingGroup", "hostname"} & made["spec"].keys()
    assert not {"env", "volumeMounts", "ports"} & container.keys()
    assert made["metadata"]["labels"][names.LABEL_REPLICA_TYPE] == "spare"
    assert names.place_of(made["metadata"]["name"], "tune") == names.Place(attempt=0, role="spare", index=1)


PROXY = {"name": "proxy", "image": "x", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}
SIDECAR = {
    "name": "logs",
    "image": "x",
    "restartPolicy": "Always",
    "resources": {"limits": {"memory": "512Mi"}, "claims": [{"name": "nic"}]},
}
CONVERT = {"name": "convert", "image": "x", "resources": {"requests": {"memory": "90Gi"}}}


def test_a_spare_takes_what_all_containers_of_a_worker_take_of_a_node():
    """The gang's pod would not fit into the room that one with the trainer's share alone leaves."""
    own = {"limits": {"nvidia.com/gpu": "8", "cpu": "4"}, "requests": {"memory": "8Gi"}}
    template = {"containers": [PROXY], "initContainers": [SIDECAR, CONVERT], "resourceClaims": [{"name": "nic"}]}
    spec = {**TWO, "resourcesPerNode": own, "podTemplate": {"spec": template}}
    made = spare(job(spec), 0, 0)["spec"]
    (container,) = made["containers"]
    assert {kind: container["resources"][kind] for kind in ("requests", "claims")} == {
        "requests": {"nvidia.com/gpu": "8", "cpu": "4.5", "memory": f"{90 * 2**30 + 512 * 2**20}"},
        "claims": [{"name": "nic"}],
    }, "the sidecar runs beside the init container that needs most"
    limits = container["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["cpu"]) == ("8", "4.5")
    assert amount(limits["memory"]) >= amount(container["resources"]["requests"]["memory"])


def test_a_spare_that_waits_for_a_node_is_made_again_when_it_may_use_more():
    policy = {"nodeExclusion": {"afterFailures": 1, "forgetAfterSeconds": 100}}
    wanted = job({**TWO, "failurePolicy": {**TWO["failurePolicy"], **policy}})
    record = [{"name": "bad", "failures": 1, "lastFailureTime": to_text(NOW), "excludedTime": to_text(NOW)}]
    waits = held(0, phase="Pending", node="", kept_from=frozenset({"bad"}))
    placed = held(1, kept_from=frozenset({"bad"}))
    known = seen(pod(0), pod(1), status={**RUNNING_STATUS, "failedNodes": record})
    known = replace(known, spares=(waits, placed))
    assert reconcile.plan(wanted, known, NOW + 99).delete == ()
    assert [each.name for each in reconcile.plan(wanted, known, NOW + 100).delete] == [NAMES[0]]


def test_a_failed_gang_leaves_its_spares_until_the_next_is_created():
    broken = replace(seen(pod(0), failed(1, 134)), spares=(held(0), held(1)))
    plan = reconcile.plan(job(TWO), broken, NOW)
    assert {each.name for each in plan.delete} == {names.pod_name("tune", 0, rank) for rank in (0, 1)}
    waits = seen(pod(0, deleting=True), status=plan.status)
    waits = replace(waits, spares=broken.spares)
    assert reconcile.plan(job(TWO), waits, NOW + 1).delete == (), "a pod of the gang still ends"
    gone = replace(waits, pods=())
    following = reconcile.plan(job(TWO), gone, NOW + 2)
    assert {each.name for each in following.delete} == set(NAMES)
    assert [name for kind, name in kinds(following) if kind == "Pod"] == [
        names.pod_name("tune", 1, rank) for rank in (0, 1)
    ]


@pytest.mark.parametrize("phase", ["Failed", "Succeeded", "Pending", "Unknown"])
def test_whatever_becomes_of_a_spare_the_gang_trains_on(phase):
    lost = replace(seen(pod(0), pod(1)), spares=(held(0, phase=phase), held(1)))
    plan = reconcile.plan(job(TWO), lost, NOW)
    is_over = phase in ("Failed", "Succeeded")
    assert [each.name for each in plan.delete] == ([NAMES[0]] if is_over else []), "it is created again"
    assert (plan.status or RUNNING_STATUS)["restarts"]["attempt"] == 0


def test_a_spare_that_ends_at_once_is_created_again_once_a_minute():
    """As where the image has no shell, or its node refuses it."""
    short = replace(seen(pod(0), pod(1)), spares=(held(0, phase="Failed", created_at=NOW - 10), held(1)))
    plan = reconcile.plan(job(TWO), short, NOW)
    assert (plan.delete, kinds(plan), plan.requeue_s) == ((), [], 50.0)
    assert [each.name for each in reconcile.plan(job(TWO), short, NOW + 50).delete] == [NAMES[0]]


def test_service_and_autoscaler_select_the_gang_alone():
    selected = names.selector("tune", 0).items()
    assert selected <= service.selector(job(TWO), 0).items()
    assert selected <= worker(job(TWO), 0, 1)["metadata"]["labels"].items()
    assert not selected <= spare(job(TWO), 0, 0)["metadata"]["labels"].items()


ENDS = {
    "suspended": ({"suspend": True}, (pod(0), pod(1))),
    "failed": ({"failurePolicy": {"maxRestarts": 0}}, (pod(0), failed(1, 134))),
    "succeeded": ({}, (pod(0, phase="Succeeded", finished_at=NOW - 100), pod(1, phase="Succeeded"))),
}


@pytest.mark.parametrize(("spec", "pods"), ENDS.values(), ids=ENDS)
def test_a_job_that_stops_keeps_no_node(spec, pods):
    ending = replace(seen(*pods), spares=(held(0), held(1)))
    plan = reconcile.plan(job({**TWO, **spec}), ending, NOW)
    assert set(NAMES) <= {each.name for each in plan.delete}
    assert plan.status["spares"] == {"desired": 2, "running": 0}
    over = replace(ending, status=plan.status)
    assert set(NAMES) <= {each.name for each in reconcile.plan(job({**TWO, **spec}), over, NOW + 1).delete}


def test_spares_are_counted_beside_the_gang():
    known = replace(seen(pod(0), pod(1)), spares=(held(0), held(1, phase="Pending")))
    status = reconcile.plan(job(TWO), known, NOW).status
    assert (status["spares"], status["replicas"]) == ({"desired": 2, "running": 1}, 2)
    assert conditions(status)["Running"][0] == "True"
    assert fitting(status) == status


def test_spares_are_told_apart_where_pods_are_read():
    owner = [{"uid": "uid-1", "controller": True, "kind": names.KIND, "apiVersion": names.API_VERSION, "name": "tune"}]
    raw = [
        {"metadata": {"name": name, "uid": name, "ownerReferences": owner}, "spec": {}, "status": {}}
        for name in (names.pod_name("tune", 0, 0), NAMES[0])
    ]
    found = observe(job_uid="uid-1", status=None, pods=raw)
    assert ([each.name for each in found.pods], [each.name for each in found.spares]) == (
        [names.pod_name("tune", 0, 0)],
        [NAMES[0]],
    )


def test_a_queue_counts_spares():
    labels = {"labels": {names.KUEUE_QUEUE: "team"}}
    queued = job(TWO, **labels)
    made = spare(queued, 0, 0)["metadata"]
    assert made["labels"][names.KUEUE_QUEUE] == "team", "a pod of its own in the queue"
    assert names.KUEUE_GROUP_NAME not in made["labels"]
    assert worker(queued, 0, 0)["metadata"]["annotations"][names.KUEUE_GROUP_TOTAL] == "2"
    whole = replace(queued, kueue_mode="External")
    sets = {each["name"]: each["count"] for each in workload.workload(whole, 0)["spec"]["podSets"]}
    assert sets == {"master": 1, "worker": 1, "spare": 2}
    assert workload.workload_name(whole) != workload.workload_name(replace(job(**labels), kueue_mode="External"))
