"""When pods ended, by our own clock where that of their node is wrong: an hour ahead or behind must change nothing."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from megatron_operator.observe import Pod

MAX_REMEMBERED = 100_000
# A kubelet reports an end within seconds; a minute also covers a busy API server.
BEHIND_S = 60.0
AHEAD_S = 5.0


@dataclass(kw_only=True)
class PodEnds:
    """What was noticed of each pod: None while it ran, then between which moments its end can lie."""

    _noticed: OrderedDict[str, tuple[float, float] | None] = field(default_factory=OrderedDict)

    def corrected(self, pods: tuple[Pod, ...], now: float) -> tuple[Pod, ...]:
        """The pods; an end that cannot have been then is the moment at which it was noticed."""
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
        """A pod that was never seen running may have ended long before this operator came."""
        window = (now - BEHIND_S if uid in self._noticed else float("-inf"), now)
        self._remember(uid, window)
        return window

    def _remember(self, uid: str, window: tuple[float, float] | None) -> None:
        self._noticed[uid] = window
        self._noticed.move_to_end(uid)
        if len(self._noticed) > MAX_REMEMBERED:
            self._noticed.popitem(last=False)
