"""nprocPerNode "auto": which devices it counts, and what it says of those that it cannot; volumes of one node."""

from __future__ import annotations

import pytest

from tests.support.operator.job_values import job

NONE_KNOWN = {"limits": {"cpu": 8}}

LOCKING = {"resource": "rdma/ib", "ipcLock": True}


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({"limits": {"nvidia.com/gpu": 8}}, 8),
        ({"limits": {"nvidia.com/gpu": "4", "rdma/ib": 1}}, 4),
        ({"limits": {"nvidia.com/gpu.shared": 2}}, 2),
        ({"limits": {"nvidia.com/mig-1g.10gb": 3}}, 3),
        ({"limits": {"nvidia.com/mig-3g.40gb.shared": 2}}, 2),
        ({"limits": {"amd.com/gpu": 8}}, 8),
        ({"limits": {"habana.ai/gaudi": 8}}, 8),
        ({"limits": {"gpu.intel.com/i915": 2}}, 2),
        ({"requests": {"nvidia.com/gpu": 2}}, 2),
        ({"requests": {"nvidia.com/gpu": 2}, "limits": {"nvidia.com/gpu": 2}}, 2),
        (NONE_KNOWN, 1),
    ],
    ids=str,
)
def test_auto_is_the_number_of_devices(resources, count):
    assert (
        job({"resourcesPerNode": resources, "args": {**ARGS, "global_batch_size": 2 * count}}).nproc_per_node == count
    )


ARGS = {"model": "/models/tiny", "dataset": ["/data/train.jsonl"], "train_iters": 100}


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        (
            {"resourcesPerNode": {"requests": {"amd.com/gpu": 1}}},
            "spec.resourcesPerNode.requests.amd.com/gpu",
            "limits",
        ),
        ({"resourcesPerNode": {"claims": [{"name": "gpus"}]}}, "spec.resourcesPerNode.claims", "set a number"),
        (
            {"podTemplate": {"spec": {"resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "h100"}]}}},
            "spec.podTemplate.spec.resourceClaims[0].name",
            "no container uses it",
        ),
        (
            {"resourcesPerNode": {"limits": {"example.com/npu": 8}}},
            "spec.resourcesPerNode.limits.example.com/npu",
            "set a number",
        ),
        (
            {"checkpoint": {"pvc": {"template": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}},
            "spec.checkpoint.pvc.template.spec.accessModes",
            "use ReadWriteMany",
        ),
        (
            {"checkpoint": {"pvc": {"template": {"spec": {"accessModes": ["ReadWriteOncePod"]}}}}},
            "spec.checkpoint.pvc.template.spec.accessModes",
            "lets one pod mount",
        ),
        ({"network": {"rdma": LOCKING}}, "spec.network.rdma.ipcLock", "runAsUser: 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_counted_or_mounted_is_a_warning(spec, path, words):
    warnings = {each.path: each.message for each in job(spec).warnings}
    assert words in warnings[path]


@pytest.mark.parametrize(
    "spec",
    [
        {
            "nprocPerNode": 8,
            "resourcesPerNode": {"limits": {"example.com/npu": 8}},
            "args": {**ARGS, "global_batch_size": 16},
        },
        {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 1, "rdma/ib": 1}}},
        {"resourcesPerNode": {"limits": {"vendor.com/nic": 1}}, "network": {"rdma": {"resource": "vendor.com/nic"}}},
        {"numNodes": 1, "checkpoint": {"pvc": {"template": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}},
        {"checkpoint": {"pvc": {"template": {"spec": {"accessModes": ["ReadWriteMany"]}}}}},
    ],
)
def test_what_is_well_said_warns_of_nothing(spec):
    assert job(spec).warnings == ()


@pytest.mark.parametrize(
    "pod",
    [
        {"securityContext": {"runAsUser": 0, "runAsNonRoot": False}},
        {"containers": [{"name": "trainer", "securityContext": {"runAsUser": 0, "runAsNonRoot": False}}]},
    ],
    ids=["pod", "container"],
)
def test_root_may_lock_memory(pod):
    warned = job({"network": {"rdma": LOCKING}, "podTemplate": {"spec": pod}}).warnings
    assert [each.path for each in warned] == ["spec.network"]  # about PodSecurity
