"""The work queue: one run a key at a time, nothing lost, failures again after a back-off."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from megatron_operator.process import work_queue
from megatron_operator.process.work_queue import RetryLater, WorkQueue

A, B, C = ("ns", "a"), ("ns", "b"), ("ns", "c")


def run(scenario):
    """Runs an async scenario that must end within a few seconds."""
    return asyncio.run(asyncio.wait_for(scenario, timeout=5))


@contextlib.asynccontextmanager
async def working(queue, reconcile, workers=4):
    task = asyncio.create_task(queue.run(workers, reconcile))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settled(runs, number, then_s=0.05):
    """Waits for so many runs, however busy the machine is, and a moment more for one too many."""
    while len(runs) < number:
        await asyncio.sleep(0.005)
    await asyncio.sleep(then_s)


def test_a_key_added_many_times_before_a_worker_is_free_runs_once():
    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key)

        queue = WorkQueue()
        for _ in range(5):
            queue.add(A)
        queue.add(B)
        async with working(queue, reconcile):
            await settled(runs, 2)
        return runs

    assert run(scenario()) == [A, B]


@pytest.mark.parametrize(
    ("patience_s", "order"),
    [
        ({"normal": 60.0, "patient": 60.0}, [C, B, A]),
        ({"normal": 0.0, "patient": 60.0}, [B, C, A]),
        ({"normal": 60.0, "patient": 0.0}, [A, C, B]),
    ],
    ids=["no one waited long", "normal one waited too long", "patient one waited too long"],
)
def test_urgent_keys_go_first_and_patient_ones_last_unless_one_has_waited_too_long(monkeypatch, patience_s, order):
    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key)

        queue = WorkQueue()
        queue.add(A, "patient")
        queue.add(B)
        queue.add(C, "patient")
        queue.add(C, "urgent")
        queue.add(C)
        assert len(queue) == 3
        async with working(queue, reconcile, workers=1):
            await settled(runs, 3)
        return runs

    monkeypatch.setattr("megatron_operator.process.work_queue.PATIENCE_S", patience_s)
    monkeypatch.setattr("megatron_operator.process.work_queue.SHARE", {})
    assert run(scenario()) == order


@pytest.mark.parametrize(
    ("longest_s", "order"),
    [(60.0, ["u0", "u1", "p0", "u2", "u3", "p1"]), (0.0, ["p0", "p1", "u0", "u1", "u2", "u3"])],
    ids=["in turn", "all have waited longest"],
)
def test_patient_keys_that_waited_too_long_together_hold_up_no_burst(monkeypatch, longest_s, order):
    """One in three: the first jobs of a burst, once they are to be reported, would stop the creation of the others."""

    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key[1])

        queue = WorkQueue()
        for number in range(2):
            queue.add(("team", f"p{number}"), "patient")
        for number in range(4):
            queue.add(("team", f"u{number}"), "urgent")
        async with working(queue, reconcile, workers=1):
            await settled(runs, 6)
        return runs

    for name, value in (("PATIENCE_S", {"patient": 0.0}), ("SHARE", {"patient": 3}), ("LONGEST_S", longest_s)):
        monkeypatch.setattr(f"megatron_operator.process.work_queue.{name}", value)
    assert run(scenario()) == order


def test_what_is_added_while_its_key_is_worked_on_keeps_its_urgency():
    async def scenario():
        runs, held = [], asyncio.Event()

        async def reconcile(key):
            runs.append(key)
            if len(runs) == 1:
                await held.wait()

        queue = WorkQueue()
        queue.add(A)
        async with working(queue, reconcile, workers=1):
            await settled(runs, 1, then_s=0)
            queue.add(A, "patient")
            queue.add(B)
            held.set()
            await settled(runs, 3)
        return runs

    assert run(scenario()) == [A, B, A]


def test_a_key_added_while_it_runs_runs_once_more_and_never_beside_itself():
    async def scenario():
        running, most, runs = 0, 0, []

        async def reconcile(key):
            nonlocal running, most
            running += 1
            runs.append(key)
            most = max(most, running)
            if len(runs) == 1:
                queue.add(A)
                queue.add(A)
            await asyncio.sleep(0.02)
            running -= 1

        queue = WorkQueue()
        queue.add(A)
        async with working(queue, reconcile):
            await settled(runs, 2)
        return most, len(runs)

    assert run(scenario()) == (1, 2)


def test_a_failed_key_runs_again_after_growing_pauses_until_it_succeeds():
    async def scenario():
        times = []
        done = asyncio.Event()

        async def reconcile(key):
            times.append(asyncio.get_running_loop().time())
            if len(times) < 4:
                raise RetryLater("not yet") if len(times) % 2 else ValueError("a defect")
            done.set()

        queue = WorkQueue(backoff_initial_s=0.04, backoff_max_s=1)
        queue.add(A)
        async with working(queue, reconcile):
            await done.wait()
        return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]

    first, second, third = run(scenario())
    assert 0.02 <= first <= second * 2
    assert third >= 0.08


def test_one_failing_key_does_not_hold_up_another():
    async def scenario():
        done = asyncio.Event()

        async def reconcile(key):
            if key == A:
                raise ValueError("a defect")
            done.set()

        queue = WorkQueue()
        queue.add(A)
        queue.add(B)
        async with working(queue, reconcile, workers=1):
            await done.wait()
        return True

    assert run(scenario())


def test_the_latest_wish_for_a_due_time_holds():
    async def scenario():
        loop = asyncio.get_running_loop()
        started, ran_at = loop.time(), []

        async def reconcile(key):
            ran_at.append(loop.time() - started)

        queue = WorkQueue()
        queue.add_after(A, 0.03)
        queue.add_after(A, 0.15)
        async with working(queue, reconcile):
            await settled(ran_at, 1)
        return ran_at

    (only,) = run(scenario())
    assert only >= 0.15


def test_a_key_that_becomes_due_is_as_urgent_as_it_then_is():
    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key)

        queue = WorkQueue(urgency_of=lambda key: "patient" if key == A else "normal")
        queue.add_after(A, 0.0)
        queue.add_after(B, 0.0)
        await asyncio.sleep(0.02)
        queue.add(C)
        async with working(queue, reconcile, workers=1):
            await asyncio.sleep(0.05)
        return runs

    assert run(scenario()) == [B, C, A]


def test_changes_that_come_together_are_looked_at_once_also_while_the_key_is_worked_on():
    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key)
            for _ in range(3):
                if len(runs) == 1:
                    queue.add_soon(A)
                await asyncio.sleep(0)

        queue = WorkQueue()
        async with working(queue, reconcile):
            for _ in range(512):
                queue.add_soon(A)
            await asyncio.sleep(0)
            assert runs == []
            await asyncio.sleep(5 * work_queue.TOGETHER_S)
            queue.add_soon(A)
            queue.add(A)
            await asyncio.sleep(3 * work_queue.TOGETHER_S)
        return runs

    assert run(scenario()) == [A, A, A]


def test_what_reconcile_returns_is_when_it_runs_next():
    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key)
            return 0.02 if len(runs) < 3 else None

        queue = WorkQueue()
        queue.add(A)
        async with working(queue, reconcile):
            await settled(runs, 3)
        return len(runs)

    assert run(scenario()) == 3


def test_a_forgotten_key_does_not_come_back():
    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key)

        queue = WorkQueue()
        queue.add_after(A, 0.02)
        queue.forget(A)
        async with working(queue, reconcile):
            await asyncio.sleep(0.1)
        return runs

    assert run(scenario()) == []


def test_a_failure_to_report_by_a_deadline_is_retried_before_it():
    async def scenario():
        runs = []

        async def reconcile(key):
            runs.append(key)
            if len(runs) == 1:
                raise RetryLater("busy", within_s=0.05)

        queue = WorkQueue(backoff_initial_s=30.0)
        queue.add(A)
        async with working(queue, reconcile):
            await settled(runs, 2)
        return runs

    assert run(scenario()) == [A, A]
