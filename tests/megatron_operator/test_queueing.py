"""Kueue's Workloads in the pure core: what an admission puts into pods, and the corners of the protocol."""

from __future__ import annotations

from dataclasses import replace

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.desired import workload
from megatron_operator.core.observe_kueue import KueueSeen, PodSetPlace, Workload, place, read_workload
from tests.support.operator.job_values import NOW, job, kinds, pod, seen

QUEUE = {names.KUEUE_QUEUE: "team-a"}


def queued(spec=None, **labels: str):
    return replace(job(spec, labels={**QUEUE, **labels}), kueue_mode="External")


def condition(type_: str, status: str = "True", reason: str = "Because") -> dict:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2027-01-15T08:00:00Z",
    }


def admitted(of, *more: dict, **fields) -> Workload:
    conditions = (condition("QuotaReserved"), condition("Admitted"), *more)
    return Workload(name=workload.workload_name(of), version="7", conditions=conditions, **fields)


def test_the_first_thing_that_a_queued_job_makes_is_its_workload():
    of = queued()
    plan = reconcile.plan(of, seen(status={}), NOW)
    assert kinds(plan) == [("Workload", workload.workload_name(of))]
    assert (plan.status["phase"], plan.status["reason"]) == ("Queued", "WaitingForQuota")
    assert [event.reason for event in plan.events] == ["JobQueued"]


def test_a_job_that_asks_for_something_else_has_another_workload():
    of = queued()
    assert workload.workload_name(of) == workload.workload_name(queued())
    assert workload.workload_name(of) != workload.workload_name(queued({"numNodes": 4}))
    assert workload.workload_name(of) != workload.workload_name(queued(**{names.KUEUE_PRIORITY: "high"}))


def test_a_running_job_whose_queue_label_changes_keeps_the_quota_that_it_has():
    before = queued()
    after = replace(before, labels={names.KUEUE_QUEUE: "team-b"})
    kueue = KueueSeen(workloads=(admitted(before, condition("PodsReady")),))
    plan = reconcile.plan(after, seen(pod(0), pod(1), kueue=kueue), NOW)
    assert (plan.delete, plan.create, plan.patch) == ((), (), ())


def test_quota_is_given_back_only_when_no_pod_is_left():
    of = queued()
    kueue = KueueSeen(workloads=(admitted(of, condition("Evicted", reason="Preempted")),))
    stopping = reconcile.plan(of, seen(pod(0), pod(1), kueue=kueue), NOW)
    assert ([ref.kind for ref in stopping.delete], stopping.patch) == (["Pod", "Pod"], ())
    assert stopping.status["restarts"]["attempt"] == 1
    gone = reconcile.plan(of, seen(status=stopping.status, kueue=kueue), NOW + 30)
    (patch,) = gone.patch
    assert patch.body["metadata"] == {"resourceVersion": "7"}
    said = {each["type"]: (each["status"], each["reason"]) for each in patch.body["status"]["conditions"]}
    assert said["QuotaReserved"] == ("False", "Pending")
    assert said["Requeued"] == ("True", "Preempted")
    assert patch.body["status"]["admission"] is None


def test_an_eviction_for_another_reason_waits_until_kueue_lets_the_job_back():
    of = queued()
    kueue = KueueSeen(workloads=(admitted(of, condition("Evicted", reason="PodsReadyTimeout")),))
    (patch,) = reconcile.plan(of, seen(kueue=kueue), NOW).patch
    said = {each["type"]: each["status"] for each in patch.body["status"]["conditions"]}
    assert said["Requeued"] == "False"


def test_running_pods_stay_when_the_queues_api_is_gone():
    plan = reconcile.plan(queued(), seen(pod(0), pod(1), kueue=KueueSeen(served=False)), NOW)
    assert (plan.delete, plan.create) == ((), ())


def test_the_end_is_reported_again_if_it_was_not_received():
    of = queued()
    running = seen(pod(0, phase="Succeeded", finished_at=NOW), pod(1, phase="Succeeded"))
    kueue = KueueSeen(workloads=(admitted(of, condition("PodsReady")),))
    ended = reconcile.plan(of, replace(running, kueue=kueue), NOW)
    assert [patch.subresource for patch in ended.patch] == ["status"]
    again = reconcile.plan(of, replace(running, status=ended.status, kueue=kueue), NOW + 1)
    assert again.patch[0].body["status"]["conditions"][-1]["reason"] == "Succeeded"
    heard = KueueSeen(workloads=(admitted(of, condition("Finished")),))
    assert reconcile.plan(of, replace(running, status=ended.status, kueue=heard), NOW + 1).patch == ()


def test_flavors_checks_and_topology_end_up_in_the_pods():
    raw = {
        "metadata": {"name": "w", "resourceVersion": "1"},
        "status": {
            "admission": {
                "podSetAssignments": [
                    {
                        "name": "master",
                        "flavors": {"cpu": "spot", "nvidia.com/gpu": "h100"},
                        "topologyAssignment": {"levels": ["rack"]},
                    }
                ]
            },
            "admissionChecks": [
                {"podSetUpdates": [{"name": "master", "annotations": {"a": "b"}, "nodeSelector": {"zone": "z"}}]}
            ],
        },
    }
    flavors = {
        "spot": {"nodeLabels": {"pool": "spot"}},
        "h100": {"nodeLabels": {"gpu": "h100"}, "tolerations": [{"key": "gpu"}]},
    }
    where = place(read_workload(raw), "master", flavors)
    assert where == PodSetPlace(
        node_selector={"gpu": "h100", "pool": "spot", "zone": "z"},
        tolerations=({"key": "gpu"},),
        annotations={"a": "b"},
        by_topology=True,
    )
    of = queued()
    kueue = KueueSeen(workloads=(admitted(of),), places={"master": where})
    plan = reconcile.plan(of, seen(status={}, kueue=kueue), NOW)
    master = next(body for body in plan.create if body["metadata"]["name"].endswith("master-0"))
    assert master["spec"]["nodeSelector"] == {"gpu": "h100", "pool": "spot", "zone": "z"}
    assert master["spec"]["schedulingGates"] == [{"name": "kueue.x-k8s.io/topology"}]
    assert master["metadata"]["annotations"]["kueue.x-k8s.io/workload"] == workload.workload_name(of)
    assert master["metadata"]["labels"]["kueue.x-k8s.io/podset"] == "master"
    assert master["metadata"]["annotations"]["kueue.x-k8s.io/podset-unconstrained-topology"] == "true"


def test_a_gang_that_wants_one_rack_asks_for_master_and_workers_together():
    of = queued({"scheduling": {"topology": {"key": "rack"}}})
    asked = workload.workload(of, 0)["spec"]["podSets"]
    assert [each["topologyRequest"] for each in asked] == [{"required": "rack", "podSetGroupName": "gang"}] * 2
    kueue = KueueSeen(workloads=(admitted(of),), places={"master": PodSetPlace(by_topology=True)})
    plan = reconcile.plan(of, seen(status={}, kueue=kueue), NOW)
    master = next(body for body in plan.create if body["metadata"]["name"].endswith("master-0"))
    annotations = master["metadata"]["annotations"]
    assert annotations["kueue.x-k8s.io/podset-required-topology"] == "rack"
    assert "kueue.x-k8s.io/podset-unconstrained-topology" not in annotations
    alone = queued({"numNodes": 1, "scheduling": {"topology": {"key": "rack", "mode": "Preferred"}}})
    assert workload.workload(alone, 0)["spec"]["podSets"][0]["topologyRequest"] == {"preferred": "rack"}
