"""Why scheduled pods do not start, from their events: a volume that cannot be mounted, a sandbox that cannot be
created.

A pod's status does not show it, and a watch of all events of a cluster would cost more than all other watches: the
newest events of a few silent pods are fetched, at growing intervals.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.resource import EVENT
from megatron_operator.core.observe import Pod
from megatron_operator.guard import Guard, shortened

Object = Mapping[str, Any]
MAX_ASKED_AT_ONCE = 8
MAX_REMEMBERED = 100_000
PAUSE_S = (3.0, 30.0)
# Other normal events are no progress: each try of a sandbox that cannot be created has its own (SandboxChanged,
# AddedInterface of a CNI plugin), and they would restart the startup deadline.
PROGRESS = frozenset(
    {"Scheduled", "SuccessfulAttachVolume", "SuccessfulMountVolume", "Pulling", "Pulled", "Created", "Started"}
)
# Of these a pod starts nonetheless; a pull that fails for want of its secret says so in the pod's status.
HARMLESS = frozenset({"DNSConfigForming", "FailedToRetrieveImagePullSecret", "AlreadyMountedVolume"})
# Beside the kubelet's own warnings, a virtual one's too; a policy engine or a cost tool may say anything of a pod that
# starts well.
STARTERS = frozenset({"attachdetach-controller", "node-controller"})
MAX_REASON_CHARACTERS = 128
MAX_MESSAGE_CHARACTERS = 1024
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is known about one silent pod; times are those of the event loop. reason: "" without a warning."""

    first_seen_s: float
    next_s: float
    reason: str = ""
    message: str = ""


class PodEvents:
    """The newest warnings about pods that have a node but do not start."""

    def __init__(self, client: Client, guard: Guard) -> None:
        self._client = client
        self._guard = guard
        self._asked: OrderedDict[str, Asked] = OrderedDict()

    async def explain(self, namespace: str, pods: tuple[Pod, ...], first: str = "") -> tuple[Pod, ...]:
        """The pods; those that do not start have their newest event if it is a warning.

        first: the pod whose wait the status has, to be asked at once and before others: an operator that has just
        started would otherwise take that wait for over.
        """
        silent = [pod for pod in pods if is_silent(pod)]
        if not silent:
            return pods
        now = asyncio.get_running_loop().time()
        known = {pod.uid: self._known(pod, now, first) for pod in silent}
        due = [pod for pod in silent if known[pod.uid].next_s <= now]
        due.sort(key=lambda pod: (pod.name != first, known[pod.uid].next_s))
        asked = due[:MAX_ASKED_AT_ONCE]
        answers = await asyncio.gather(*(self._ask(namespace, pod, known[pod.uid], now) for pod in asked))
        known |= {pod.uid: answer for pod, answer in zip(asked, answers, strict=True)}
        self._remember(known)
        return tuple(_explained(pod, known[pod.uid]) if pod.uid in known else pod for pod in pods)

    def _known(self, pod: Pod, now: float, first: str) -> Asked:
        """What is known about the pod; a new pod's events are fetched after a pause, since most start within it."""
        pause_s = 0.0 if pod.name == first else PAUSE_S[0]
        return self._asked.get(pod.uid) or Asked(first_seen_s=now, next_s=now + pause_s)

    def _remember(self, known: Mapping[str, Asked]) -> None:
        """Drops the pods that were seen silent longest ago when there are too many."""
        for uid, asked in known.items():
            self._asked[uid] = asked
            self._asked.move_to_end(uid)
        while len(self._asked) > MAX_REMEMBERED:
            self._asked.popitem(last=False)

    async def _ask(self, namespace: str, pod: Pod, before: Asked, now: float) -> Asked:
        """What is known about the pod after its events were fetched."""
        pause_s = min(max(now - before.first_seen_s, PAUSE_S[0]), PAUSE_S[1])
        after = replace(before, next_s=now + pause_s)
        parameters = {"fieldSelector": f"involvedObject.uid={pod.uid}", "limit": "500"}
        try:
            page = await self._client.list_page(EVENT, namespace, parameters, metadata_only=False)
            reason, message = self._guard.read("events", _read_page, page) or ("", "")
            after = replace(after, reason=reason, message=message)
        except ApiError as error:
            logger.info("events not read namespace=%s pod=%s error=%s", namespace, pod.name, error)
        return after


def _explained(pod: Pod, asked: Asked) -> Pod:
    return replace(pod, warning=asked.reason, warning_message=asked.message)


def is_silent(pod: Pod) -> bool:
    """Whether the pod has a node and has not started."""
    return pod.phase == "Pending" and bool(pod.node) and not pod.deleting


def newest_warning(events: list[Object] | tuple[Object, ...]) -> tuple[str, str]:
    """Reason and message of the newest event about trouble or progress if it is trouble, else ("", "")."""
    newest = max((event for event in events if _is_relevant(event)), key=_version, default={})
    if newest.get("type") != "Warning":
        return "", ""
    reason = shortened(newest.get("reason"), MAX_REASON_CHARACTERS)
    return reason, shortened(newest.get("message"), MAX_MESSAGE_CHARACTERS)


def _is_relevant(event: Object) -> bool:
    reason = event.get("reason")
    if event.get("type") != "Warning":
        return reason in PROGRESS
    component = str(event.get("reportingComponent") or (event.get("source") or {}).get("component"))
    return reason not in HARMLESS and ("kubelet" in component or component in STARTERS)


def _read_page(page: Object) -> tuple[str, str]:
    return newest_warning(page.get("items") or ())


def _version(event: Object) -> int:
    """Sort key: the order of the server's last writes. Times in events are by the clocks of several machines."""
    return int(event["metadata"].get("resourceVersion") or 0)
