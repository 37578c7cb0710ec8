"""Launchers of pods whose ranks are only drawn: each reports to the operator with its pod's token and obeys its word.

They run inside the fake kubelet's loop. A rank that fails makes the others of its attempt wait, as in a collective;
ranks succeed together. Notes every word of the operator that no stored status covers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from local_cluster.control_plane import Refused
from megatron_operator.cluster.kubernetes.client import Client
from megatron_trainjob import launcher
from megatron_trainjob.environment import ATTEMPT_FILE
from megatron_trainjob.exit_codes import describe, ends_for_good
from megatron_trainjob.launcher import Directive, LauncherReport, RanksState
from megatron_trainjob.termination import TerminationRecord
from tests.support.operator.job_client import JobClient
from tests.support.operator.progress_client import TRAINING, pod_token

Object = Mapping[str, Any]
Run = tuple[str, int]
"""The ranks of one attempt of a job: its name and the attempt."""
POLL_S = 0.1
PATIENCE_S = 20.0
LOST_PEERS = 1
LOST_PEERS_S = 1.0
TICKS_TO_FIRST_STEP = 3


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How the ranks of an attempt end, this long after all of them have started; exit code 0: all of them well.

    node_rank: of the node whose rank fails.
    """

    after_s: float
    exit_code: int = 0
    node_rank: int = 0


@dataclass(kw_only=True)
class Ranks:
    """The ranks of one attempt. started: the pods on which they run. is_over: they have come to their end.

    broken_at: when a pod went with its ranks, so that the others soon fail. living: launchers that still run.
    """

    fate: Fate
    num_nodes: int
    started: set[str] = field(default_factory=set)
    since: float = float("inf")
    is_over: bool = False
    broken_at: float = float("inf")
    living: int = 0

    def start(self, pod: str) -> None:
        """Starts those of one pod."""
        self.started.add(pod)
        if len(self.started) == self.num_nodes:
            self.since = time.monotonic()

    @property
    def do_train(self) -> bool:
        """Whether all of them run: until then, and when some are gone, the others wait and give no sign of life."""
        return self.since < float("inf") and not self.is_over and self.broken_at == float("inf")

    def exit_code(self, node_rank: int) -> int | None:
        """How those of this node have ended, None while they run or wait for others."""
        if self.broken_at < float("inf"):
            return LOST_PEERS if time.monotonic() > self.broken_at + LOST_PEERS_S else None
        if time.monotonic() < self.since + self.fate.after_s:
            return None
        self.is_over = True
        return self.fate.exit_code if self.fate.exit_code == 0 or node_rank == self.fate.node_rank else None


@dataclass(kw_only=True)
class FakeLaunchers:
    """The launchers of all pods of one namespace.

    fate: of the ranks of an attempt. frozen: pods whose launcher says nothing more. killed: exit codes with which the
    containers of pods end, launcher and all. noted, containers: by uid of the
    pod, the attempt that its launcher has noted, and how many launchers it had.
    is_lost: whether an answer is lost on its way. in_place, joined: how often ranks have started again in a pod, and of
    those times in another container of it, by job. problems: words of the operator that it
    must not say. answers: reports by how they were answered.
    """

    jobs: JobClient
    fate: Callable[[Run], Fate]
    is_lost: Callable[[], bool] = lambda: False
    frozen: set[str] = field(default_factory=set)
    killed: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    containers: Counter[str] = field(default_factory=Counter)
    in_place: Counter[str] = field(default_factory=Counter)
    joined: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    runs: dict[Run, Ranks] = field(default_factory=dict)

    async def run(self, client: Client, pod: Object) -> int:
        """What the trainer's container does; its exit code."""
        context = ssl.create_default_context(cafile=str(self.jobs.plane.folder / "ca.crt"))
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=4), timeout=timeout
        ) as session:
            running = _Launcher(launchers=self, session=session, pod=pod)
            try:
                return running.exit_code(await running.run())
            except asyncio.CancelledError:
                running.ranks.broken_at = min(running.ranks.broken_at, time.monotonic())
                raise
            finally:
                running.ranks.living -= 1

    def of(self, run: Run, num_nodes: int) -> Ranks:
        """The ranks of an attempt; new ones once no launcher of earlier ones is left."""
        known = self.runs.get(run)
        if known is None or not known.living:
            known = self.runs[run] = Ranks(fate=self.fate(run), num_nodes=num_nodes)
        known.living += 1
        return known

    def running(self) -> list[tuple[Run, Ranks]]:
        """Attempts of which all ranks run."""
        return [(run, ranks) for run, ranks in tuple(self.runs.items()) if ranks.do_train]


@dataclass(kw_only=True)
class _Launcher:
    """One pod's launcher."""

    launchers: FakeLaunchers
    session: aiohttp.ClientSession
    pod: Object
    token: str = ""
    state: RanksState = "running"
    failure: TerminationRecord | None = None
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        self.name: str = self.pod["metadata"]["name"]
        self.variables = {each["name"]: each.get("value", "") for each in self.pod["spec"]["containers"][0]["env"]}
        self.job = self.variables["MTJ_JOB_NAME"]
        self.node_rank, self.num_nodes = int(self.variables["NODE_RANK"]), int(self.variables["NNODES"])
        self.uid: str = self.pod["metadata"]["uid"]
        self.starts_again = ATTEMPT_FILE in self.variables
        self.container = self.launchers.containers[self.uid]
        self.launchers.containers[self.uid] += self.starts_again
        if self.uid in self.launchers.noted:
            self._wait_as_failed(self.launchers.noted[self.uid])
        else:
            self._start(int(self.variables["MTJ_RESTART_ATTEMPT"]))

    def exit_code(self, code: int) -> int:
        """The container's, where its launcher ends with this code of its ranks; another where it is killed."""
        if (killed := self.launchers.killed.pop(self.name, None)) is not None:
            return killed
        return ends_for_good(code) if self.starts_again else code

    def _wait_as_failed(self, attempt: int) -> None:
        """The ranks of the container before have ended with it."""
        self.attempt, self.state, self.since, self.ticks = attempt, "failed", time.monotonic(), 0
        self.ranks = Ranks(fate=Fate(after_s=0.0), num_nodes=self.num_nodes, is_over=True, living=1)
        self.failure = TerminationRecord(
            exit_code=137, reason=launcher.CONTAINER_ENDED, rank=self.node_rank, iteration=None, message="drawn"
        )

    async def run(self) -> int:
        """Until the ranks are done, or the pod is to end with the code of a rank."""
        heard_at = due = time.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            if self.name in self.launchers.killed:
                self.ranks.broken_at = min(self.ranks.broken_at, time.monotonic())
                return 0
            if self.name in self.launchers.frozen:
                continue
            ended = self._look_at_ranks()
            if ended == 0 or (ended is not None and not launcher.can_start_again(ended)):
                return ended
            if time.monotonic() >= due or ended is not None:
                directive = await self._exchange()
                now = time.monotonic()
                heard_at, due = (now, now + directive.interval_s) if directive else (heard_at, now + 1.0)
                if directive and await self._obeys(directive) and self.failure:
                    return self.failure.exit_code
            if self.failure and time.monotonic() - heard_at > PATIENCE_S:
                return self.failure.exit_code

    def _start(self, attempt: int) -> None:
        self.attempt, self.state, self.since, self.failure, self.ticks = attempt, "running", time.monotonic(), None, 0
        if self.ranks is not None:
            self.ranks.living -= 1
        self.ranks = self.launchers.of((self.job, attempt), self.num_nodes)
        self.ranks.start(self.name)
        if self.starts_again:
            self.launchers.noted[self.uid] = attempt

    def _look_at_ranks(self) -> int | None:
        """The exit code of ranks that have ended since the last look."""
        self.ticks += 1
        code = self.ranks.exit_code(self.node_rank) if self.state == "running" else None
        if code:
            self.state, self.since = "failed", time.monotonic()
            self.failure = TerminationRecord(
                exit_code=code, reason=describe(code), rank=self.node_rank, iteration=None, message="drawn"
            )
        return code

    async def _obeys(self, directive: Directive) -> bool:
        """Does what the operator says; whether the pod ends with it."""
        if directive.attempt > self.attempt:
            await self._check(directive.attempt)
            self.launchers.in_place[self.job] += 1
            self.launchers.joined[self.job] += bool(self.failure and self.failure.reason == launcher.CONTAINER_ENDED)
            self._start(directive.attempt)
            return False
        if directive.attempt < self.attempt:
            self.launchers.problems.append(f"{self.name} is at attempt {self.attempt} and was told {directive.attempt}")
        return directive.ends

    async def _check(self, attempt: int) -> None:
        """An attempt that a launcher hears of is written down, for these pods or for later ones."""
        with contextlib.suppress(Refused, OSError):  # the API server is just restarting
            status = await asyncio.to_thread(self.launchers.jobs.status, self.job)
            stored = status.get("restarts", {}).get("attempt", 0)
            if stored < attempt:
                self.launchers.problems.append(f"{self.name} was told {attempt}, but {stored} is written down")

    async def _exchange(self) -> Directive | None:
        """The answer to a report; None without one. The master's progress goes first."""
        try:
            if not self.token:
                self.token = await asyncio.to_thread(pod_token, self.launchers.jobs, self.name)
            if self.node_rank == 0 and self.ranks.do_train:
                url = f"{self.variables['KUBEFLOW_TRAINER_SERVER_URL']}?attempt={self.attempt}"
                await self._post(url, {"progress": {**TRAINING, "iteration": min(self.ticks, 119)}})
            status, body = await self._post(self.variables["MTJ_LAUNCHER_URL"], self._report().to_fields())
        except (aiohttp.ClientError, OSError, TimeoutError, Refused, TypeError, ValueError):
            self.launchers.answers["none"] += 1
            return None
        self.launchers.answers[str(status)] += 1
        if status != 200 or self.launchers.is_lost():
            return None
        return launcher.read_directive(body)

    def _report(self) -> LauncherReport:
        has_stepped = self.node_rank == 0 and self.ranks.do_train and self.ticks > TICKS_TO_FIRST_STEP
        return LauncherReport(
            attempt=self.attempt,
            state=self.state,
            age_s=time.monotonic() - self.since,
            failure=self.failure,
            stages_s={"firstStep": 0.1} if has_stepped else {},
            container=self.container,
        )

    async def _post(self, url: str, body: object) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self.session.post(url, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)
