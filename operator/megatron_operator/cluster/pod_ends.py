"""How pods ended: when, by our own clock where their node's is wrong, and which had succeeded before their deletion."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from megatron_operator.core.observe import Pod

Key = tuple[str, str]
MAX_REMEMBERED = 100_000
MAX_JOBS = 10_000
# A kubelet reports an end within seconds; a minute also covers a busy API server.
BEHIND_S = 60.0
AHEAD_S = 5.0


@dataclass(kw_only=True)
class PodEnds:
    """What was observed of each pod: None while it ran, then the interval in which it must have ended."""

    _noticed: OrderedDict[str, tuple[float, float] | None] = field(default_factory=OrderedDict)

    def corrected(self, pods: tuple[Pod, ...], now: float) -> tuple[Pod, ...]:
        """The pods; an impossible end time is replaced by the time at which the end was observed."""
        return tuple(self._corrected(pod, now) for pod in pods)

    def _corrected(self, pod: Pod, now: float) -> Pod:
        if not pod.is_finished:
            self._remember(pod.uid, None)
            return pod
        earliest, noticed = self._noticed.get(pod.uid) or self._notice(pod.uid, now)
        if pod.finished_at is None or earliest <= pod.finished_at <= noticed + AHEAD_S:
            return pod
        return replace(pod, finished_at=noticed)

    def _notice(self, uid: str, now: float) -> tuple[float, float]:
        """A pod that was never seen running may have ended long before this operator started."""
        window = (now - BEHIND_S if uid in self._noticed else float("-inf"), now)
        self._remember(uid, window)
        return window

    def _remember(self, uid: str, window: tuple[float, float] | None) -> None:
        self._noticed[uid] = window
        self._noticed.move_to_end(uid)
        if len(self._noticed) > MAX_REMEMBERED:
            self._noticed.popitem(last=False)


@dataclass(kw_only=True)
class Successes:
    """Pods that had succeeded when they were deleted, before any status recorded their success."""

    _gone: OrderedDict[tuple[Key, str], dict[str, Pod]] = field(default_factory=OrderedDict)

    def note(self, key: Key, owner_uid: str, pod: Pod) -> None:
        """Stores a deleted pod."""
        if pod.phase != "Succeeded":
            return
        self._gone.setdefault((key, owner_uid), {})[pod.name] = replace(pod, deleting=True)
        if len(self._gone) > MAX_JOBS:
            self._gone.popitem(last=False)

    def of(self, key: Key, owner_uid: str, attempt: int, *, but_not: Collection[str]) -> tuple[Pod, ...]:
        """Those of this job's attempt, except recreated names; those of earlier attempts are dropped."""
        kept = {
            name: pod
            for name, pod in self._gone.pop((key, owner_uid), {}).items()
            if pod.attempt >= attempt and name not in but_not
        }
        if kept:
            self._gone[key, owner_uid] = kept
        return tuple(pod for pod in kept.values() if pod.attempt == attempt)
