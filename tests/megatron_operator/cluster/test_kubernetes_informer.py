"""The informer: reads what a job of ours owns, and survives everything else that bears its label."""

from __future__ import annotations

import pytest

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import Identity, connect
from megatron_operator.cluster.kubernetes.informer import Informer, Listeners, Scope
from megatron_operator.cluster.kubernetes.resource import POD
from megatron_operator.cluster.pod_ends import Successes
from megatron_operator.core.observe import read_pod
from megatron_operator.guard import Guard

UNUSED = Client(connect("http://unused", ca_file=None, identity=Identity()))
KEY = ("team", "tune")
OWNER = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "tune", "uid": "job-1", "controller": True}


def raw(name="tune-a0-master-0", *, version=1, owners=(OWNER,), labels=None, **status):
    metadata = {
        "namespace": "team",
        "name": name,
        "uid": f"uid-of-{name}",
        "resourceVersion": str(version),
        "labels": {names.LABEL_JOB_NAME: "tune", **(labels or {})},
        "ownerReferences": list(owners),
    }
    return {"metadata": metadata, "spec": {}, "status": status}


class Heard:
    """An informer of pods and whom it tells."""

    def __init__(self):
        self.changed, self.unreadable = [], []
        listeners = Listeners(changed=self.changed.append, guard=Guard(count=self.unreadable.append))
        self.successes = Successes()
        self.informer = Informer(UNUSED, Scope(resource=POD), read_pod, listeners, self.successes.note)

    @property
    def names(self):
        return sorted(self.informer.of(KEY, "job-1"))


@pytest.mark.parametrize(
    "owners",
    [
        (),
        ({**OWNER, "controller": False},),
        ({**OWNER, "kind": "Job"},),
        ({**OWNER, "apiVersion": "elsewhere.dev/v1"},),
        ({**OWNER, "uid": "job-0"},),
    ],
    ids=["none", "not controlling", "other kind", "other group", "an earlier job"],
)
def test_a_pod_that_the_job_does_not_own_is_not_seen(owners):
    heard = Heard()
    heard.informer.put(raw(owners=owners, labels={names.LABEL_RESTART_ATTEMPT: "oops"}))
    assert (heard.names, heard.unreadable) == ([], [])


@pytest.mark.parametrize(
    "poison",
    [
        raw("innocent"),
        raw("tune-a0-worker-1", conditions=[{"status": "True"}]),
        raw("tune-a0-worker-1", containerStatuses=[{"state": {"terminated": 7}}]),
        raw("tune-a0-worker-1", conditions=[{"type": "PodScheduled", "status": "True", "lastTransitionTime": 7}]),
    ],
)
def test_a_pod_that_cannot_be_read_is_counted_and_the_others_are_seen(poison):
    heard = Heard()
    for pod in (raw(), poison, raw("tune-a0-worker-0")):
        heard.informer.put(pod)
    assert heard.names == ["tune-a0-master-0", "tune-a0-worker-0"]
    assert (heard.changed, heard.unreadable) == ([KEY, KEY], ["pods"])


def test_a_pod_that_lost_its_owner_or_label_is_forgotten_without_a_word():
    heard = Heard()
    heard.informer.put(raw())
    heard.informer.put(raw(version=2, owners=()))
    assert heard.names == []
    unlabeled = raw(version=3)
    del unlabeled["metadata"]["labels"]
    heard.informer.put(unlabeled)
    heard.informer.drop(unlabeled)
    assert (heard.names, heard.unreadable) == ([], [])


def succeeded(name, **fields):
    state = {"terminated": {"exitCode": 0}}
    return raw(name, phase="Succeeded", containerStatuses=[{"name": "trainer", "state": state}], **fields)


def test_a_pod_that_succeeded_and_is_removed_at_once_is_remembered_for_its_attempt():
    heard = Heard()
    for pod in (succeeded("tune-a0-worker-0"), raw("tune-a0-worker-1"), raw()):
        heard.informer.put(pod)
        heard.informer.drop(pod) if pod["metadata"]["name"] != "tune-a0-master-0" else None
    (gone,) = heard.successes.of(KEY, "job-1", 0, but_not=heard.names)
    assert (gone.name, gone.phase, gone.deleting) == ("tune-a0-worker-0", "Succeeded", True)
    assert heard.successes.of(KEY, "job-2", 0, but_not=()) == ()
    assert heard.successes.of(KEY, "job-1", 0, but_not={"tune-a0-worker-0"}) == ()
    heard.successes.note(KEY, "job-1", gone)
    assert heard.successes.of(KEY, "job-1", 1, but_not=()) == ()
    assert heard.successes.of(KEY, "job-1", 0, but_not=()) == ()
