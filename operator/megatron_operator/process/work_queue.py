"""The queue of keys to reconcile: each key once, never concurrently, failed ones again after a backoff.

In a burst urgent keys go first and patient ones last, until one has waited its `PATIENCE_S`; of those with a `SHARE`,
only one in so many keys then goes first, until one has waited `LONGEST_S`. Knows nothing about the meaning of a key or
why it is due.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

Key = tuple[str, str]
Reconcile = Callable[[Key], Awaitable[float | None]]
Urgency = Literal["urgent", "normal", "patient"]
PATIENCE_S: dict[Urgency, float] = {"normal": 5.0, "patient": 20.0}
# All at once would stop what is urgent just where a slow machine makes a burst last longer than their patience.
SHARE: dict[Urgency, int] = {"patient": 8}
LONGEST_S = 60.0
TOGETHER_S = 0.05
ORDER: tuple[Urgency, ...] = ("urgent", "normal", "patient")
logger = logging.getLogger(__name__)


class RetryLater(Exception):
    """A transient condition (a busy server, a conflict): retry the key after its backoff, at most after within_s."""

    def __init__(self, reason: str, within_s: float | None = None) -> None:
        super().__init__(reason)
        self.within_s = within_s


class WorkQueue:
    """A deduplicating queue with one due time per key.

    A key that is added while it is being worked on runs once more afterwards. What `reconcile` returns
    (seconds, or None) replaces the key's due time: a level-triggered reconcile always knows when it needs to
    run again.
    """

    def __init__(
        self,
        *,
        backoff_initial_s: float = 0.2,
        backoff_max_s: float = 60.0,
        urgency_of: Callable[[Key], Urgency] = lambda key: "normal",
    ) -> None:
        """`urgency_of` is called with a key that has become due."""
        self._urgency_of = urgency_of
        self._backoff_initial_s = backoff_initial_s
        self._backoff_max_s = backoff_max_s
        self._waiting: dict[Urgency, dict[Key, float]] = {urgency: {} for urgency in ORDER}
        self._running: set[Key] = set()
        self._again: dict[Key, Urgency] = {}
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._failures: dict[Key, int] = {}
        self._available = asyncio.Semaphore(0)
        self._alarm: asyncio.TimerHandle | None = None
        self._soon: dict[Key, asyncio.TimerHandle] = {}
        self._num_taken = 0

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return sum(map(len, self._waiting.values()))

    @property
    def oldest_s(self) -> float:
        """Seconds that the first key has waited for a worker; 0 when none waits."""
        return max(map(_age_s, self._waiting.values()))

    def add(self, key: Key, urgency: Urgency = "normal") -> None:
        """Makes the key due now. A key that waits already moves forward if this is more urgent, never back."""
        if key in self._running:
            self._again[key] = min(urgency, self._again.get(key, urgency), key=ORDER.index)
            return
        before = next((each for each in ORDER if key in self._waiting[each]), None)
        if before is None:
            self._waiting[urgency][key] = asyncio.get_running_loop().time()
            self._available.release()
        elif ORDER.index(urgency) < ORDER.index(before):
            del self._waiting[before][key]
            self._waiting[urgency][key] = asyncio.get_running_loop().time()

    def add_soon(self, key: Key) -> None:
        """Makes the key due in `TOGETHER_S`: changes to the pods of a gang arrive together and need one reconcile."""
        if key not in self._soon:
            self._soon[key] = asyncio.get_running_loop().call_later(TOGETHER_S, self._add_late, key)

    def _add_late(self, key: Key) -> None:
        del self._soon[key]
        self.add(key, self._urgency_of(key))

    def add_after(self, key: Key, seconds: float) -> None:
        """Makes the key due in so many seconds, replacing an earlier delay."""
        due = asyncio.get_running_loop().time() + max(0.0, seconds)
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        self._set_alarm()

    def forget(self, key: Key) -> None:
        """Drops due time and failures of a deleted key."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    async def run(self, num_workers: int, reconcile: Reconcile) -> None:
        """Processes keys forever, up to this many at once."""
        async with asyncio.TaskGroup() as group:
            for _ in range(num_workers):
                group.create_task(self._work(reconcile))

    async def _work(self, reconcile: Reconcile) -> None:
        while True:
            key = await self._take()
            try:
                seconds = await reconcile(key)
            except RetryLater as reason:
                logger.info("reconcile postponed namespace=%s job=%s reason=%s", *key, reason)
                self._retry(key, reason.within_s)
            except Exception:  # a defect that one job triggers must not stop the others
                logger.exception("reconcile failed namespace=%s job=%s", *key)
                self._retry(key)
            else:
                self._failures.pop(key, None)
                self._reschedule(key, seconds)
            finally:
                self._finish(key)

    async def _take(self) -> Key:
        await self._available.acquire()
        self._num_taken += 1
        impatient = (self._waiting[each] for each in PATIENCE_S if self._is_impatient(each))
        waiting = next(impatient, None) or next(self._waiting[each] for each in ORDER if self._waiting[each])
        key = next(iter(waiting))
        del waiting[key]
        self._running.add(key)
        if late := self._soon.pop(key, None):
            late.cancel()
        return key

    def _is_impatient(self, urgency: Urgency) -> bool:
        """Whether a key of this urgency goes before more urgent ones now."""
        age_s, its_turn = _age_s(self._waiting[urgency]), self._num_taken % SHARE.get(urgency, 1) == 0
        return bool(self._waiting[urgency]) and age_s >= PATIENCE_S[urgency] and (its_turn or age_s >= LONGEST_S)

    def _finish(self, key: Key) -> None:
        self._running.discard(key)
        urgency = self._again.pop(key, None)
        if urgency:
            self.add(key, urgency)

    def _retry(self, key: Key, within_s: float | None = None) -> None:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest_s = min(self._backoff_max_s, self._backoff_initial_s * 2 ** min(failures, 30))
        pause_s = longest_s * random.uniform(0.5, 1.0)
        self.add_after(key, pause_s if within_s is None else min(pause_s, within_s))

    def _reschedule(self, key: Key, seconds: float | None) -> None:
        if seconds is None:
            self._due.pop(key, None)
        else:
            self.add_after(key, seconds)

    def _set_alarm(self) -> None:
        """Timer callback for the earliest due time; replaced entries are skipped."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._alarm:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_at(self._heap[0][0], self._ring) if self._heap else None

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key, self._urgency_of(key))
        self._set_alarm()


def _age_s(waiting: Mapping[Key, float]) -> float:
    """Seconds that the first of them has waited; 0 when none waits."""
    first = next(iter(waiting.values()), None)
    return 0.0 if first is None else asyncio.get_running_loop().time() - first
