"""Reconciles one job at a time: observe, plan, apply. All policy is in the pure core.

Also caches the jobs themselves, from kopf's watch and from our own status writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from megatron_operator import clock, manifest
from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.apply import REFUSALS, ForeignObject, InvalidObject, Predecessor, apply
from megatron_operator.cluster.kubernetes.cache import Cache
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.events import Recorder
from megatron_operator.cluster.kubernetes.resource import CLAIM, JOB, Resource
from megatron_operator.core import attempts, events, push, reconcile
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.job import Job, KueueMode, ProgressPush
from megatron_operator.core.observe import Seen
from megatron_operator.core.plan import Plan
from megatron_operator.process.metrics import Metrics
from megatron_operator.process.work_queue import Key, RetryLater
from megatron_operator.timestamp import to_seconds
from megatron_trainjob import images
from megatron_trainjob.launcher import Directive, LauncherReport
from megatron_trainjob.progress import Progress
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
Parsed = Job | tuple[Violation, ...]
HEAVY_METADATA = ("managedFields",)
# After this long, any other error (5xx from the server or a webhook, no response) no longer counts as transient.
LASTING_S = 20.0
COUNT_S = 1.0
# As the server says it of a job that was just deleted; the job's Service, which may be missing too, has the same name.
JOB_NOT_FOUND = f'{names.PLURAL}.{names.GROUP} "{{}}" not found'
logger = logging.getLogger(__name__)


class Jobs:
    """The jobs as last seen; the newest version wins, so a late watch event never undoes our own write."""

    def __init__(
        self,
        trainer_image: str = images.TRAINER,
        progress_push: Callable[[], ProgressPush | None] = lambda: None,
        kueue_mode: KueueMode = "PodGroup",
    ) -> None:
        self._trainer_image = trainer_image
        self._progress_push = progress_push
        self._kueue_mode = kueue_mode
        self.has_container_restarts = False
        self._raw: dict[Key, Object] = {}
        self._parsed: dict[Key, tuple[object, Parsed]] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._raw))

    def get(self, key: Key) -> Object | None:
        """The job, or None when there is none."""
        return self._raw.get(key)

    def version(self, key: Key) -> int:
        """The resourceVersion of the job as last seen, 0 for none."""
        raw = self._raw.get(key)
        return _version(raw) if raw else 0

    def is_reported(self, key: Key) -> bool:
        """Whether the job has a status. In a burst its first one waits: creating other jobs' pods comes first."""
        return "status" in self._raw.get(key, {})

    def put(self, raw: Object) -> bool:
        """Stores the job; returns whether it is another job or a newer version."""
        key = key_of(raw)
        known = self._raw.get(key)
        if known and known["metadata"]["uid"] == raw["metadata"]["uid"] and _version(known) >= _version(raw):
            return False
        metadata = {name: value for name, value in raw["metadata"].items() if name not in HEAVY_METADATA}
        self._raw[key] = {**raw, "metadata": metadata}
        return True

    def drop(self, key: Key) -> None:
        """Drops a deleted job."""
        self._raw.pop(key, None)
        self._parsed.pop(key, None)

    def parse(self, key: Key) -> Parsed:
        """The parsed job, or the problems of its manifest; reparsed only when it changed."""
        raw = self._raw[key]
        metadata = raw["metadata"]
        pushes = self._progress_push()
        texts = metadata.get("labels"), metadata.get("annotations")
        version = (metadata["uid"], metadata.get("generation"), *texts, pushes, self.has_container_restarts)
        known = self._parsed.get(key)
        if known is None or known[0] != version:
            parsed = _parsed(raw, self._trainer_image)
            if isinstance(parsed, Job):
                parsed = replace(
                    parsed,
                    progress_push=pushes,
                    kueue_mode=self._kueue_mode,
                    has_container_restarts=self.has_container_restarts,
                )
            known = self._parsed[key] = (version, parsed)
        return known[1]

    def statuses(self) -> Iterator[tuple[str, Object]]:
        """(namespace, status) of every job."""
        return ((key[0], raw.get("status") or {}) for key, raw in self._raw.items())


class Controller:
    """Reconciles jobs by key. Keeps in memory only what can be lost: the last refusals and pushed progress."""

    def __init__(self, *, client: Client, recorder: Recorder, cache: Cache, jobs: Jobs, metrics: Metrics) -> None:
        self._client = client
        self._recorder = recorder
        self._cache = cache
        self._jobs = jobs
        self._metrics = metrics
        self._problems: dict[Key, tuple[str, str]] = {}
        self._failing_since: dict[Key, float] = {}
        self._progress: dict[Key, tuple[str, Progress]] = {}
        self._launchers: dict[Key, tuple[str, Mapping[str, HeardReport]]] = {}
        self._counts: tuple[float, Mapping[bool, int]] = (float("-inf"), {})
        self._listens_since: float | None = None

    def uid_of(self, key: Key) -> str | None:
        """The uid of the job with this name, None if there is no such job."""
        job = self._jobs.get(key)
        return str(job["metadata"]["uid"]) if job else None

    def is_past(self, key: Key, uid: str, pod_attempt: int, attempt: int) -> bool:
        """Whether a report from this attempt is too late, or belongs to a deleted job of the same name."""
        job = self._jobs.get(key)
        if job is None or self.uid_of(key) != uid:
            return True
        return push.is_past(attempt, pod_attempt, job.get("status") or {}, self._reported(key, uid))

    def take_progress(self, key: Key, uid: str, progress: Progress) -> bool:
        """Stores progress that a job's trainer reported; returns whether the job is worth a reconcile now."""
        before = self._reported(key, uid)
        self._progress[key] = (uid, progress)
        return before is None or _is_news(before, progress)

    def take_report(self, key: Key, uid: str, pod: str, report: LauncherReport) -> bool:
        """Stores the report of a pod's launcher; returns whether the job should be reconciled now."""
        if self.uid_of(key) != uid:
            return False  # deleted while its token was reviewed
        reporter, heard = self._launchers.get(key, ("", {}))
        if reporter != uid:
            heard = {}
        before = heard.get(pod)
        self._launchers[key] = (uid, {**heard, pod: HeardReport(report=report, at=clock.now())})
        return before is None or _facts(before.report) != _facts(report)

    def directive(self, key: Key, uid: str, place: names.Place, report: LauncherReport) -> Directive | None:
        """The answer to a launcher's report, by the status as the server has it."""
        job = self._jobs.get(key)
        if job is None or self.uid_of(key) != uid:
            return None
        now = clock.now()
        of_job = attempts.num_reporting(self._launchers[key][1].values(), now)
        waits = report.state == "failed"
        interval_s = attempts.interval_s(report, of_job, max(of_job, self._num_alike(waits=waits, now=now)))
        return attempts.directive(job.get("status") or {}, place, report, now, interval_s)

    def _num_alike(self, *, waits: bool, now: float) -> int:
        """How many launchers wait for a decision, or do not; counted once a second, for there may be thousands."""
        counted_at, counts = self._counts
        if not 0 <= now - counted_at < COUNT_S:
            of_all = [each for _, heard in self._launchers.values() for each in heard.values()]
            failed = [each for each in of_all if each.report.state == "failed"]
            num_failed = attempts.num_reporting(failed, now)
            counts = {True: num_failed, False: attempts.num_reporting(of_all, now) - num_failed}
            self._counts = (now, counts)
        return counts[waits]

    def progress(self) -> Mapping[Key, Progress]:
        """The latest report of every job that reports."""
        return {key: progress for key, (_, progress) in self._progress.items()}

    def _reported(self, key: Key, uid: str) -> Progress | None:
        """The latest report of this job, not of an earlier one with the same name."""
        reporter, progress = self._progress.get(key, ("", None))
        return progress if reporter == uid else None

    async def reconcile(self, key: Key) -> float | None:
        """Seconds after which to reconcile again, None when only a change can matter. Raises RetryLater."""
        with self._metrics.reconcile_s.labels("done").time():
            job = self._jobs.get(key)
            if job is None or "deletionTimestamp" in job["metadata"]:
                self._forget(key)
                return None
            was_told = key in self._problems
            try:
                return await self._bring(key, job)
            except (ApiError, ForeignObject) as error:
                self._metrics.reconcile_errors.inc()
                if key in self._problems and not was_told:
                    return 0.0  # the next reconcile shows the refusal on the job; a refusal met then backs off as usual
                raise RetryLater(str(error), self._shown_within_s(key)) from error
            except Exception:
                self._metrics.reconcile_errors.inc()
                raise

    async def _bring(self, key: Key, job: Object) -> float | None:
        now = clock.now()
        self._listens_since = self._listens_since or now  # only a leader comes here, and to it reports are forwarded
        plan = await self._plan(key, job, now)
        for event in events.recent(job.get("status") or {}, now):  # posted once, whoever decided it
            await self._recorder.post(job, event, now)
        try:
            await apply(self._client, self._recorder, job, plan, now, on_written=self._take_written(job, now))
        except Predecessor as error:
            if clock.now() - self._failing_since.setdefault(key, now) >= LASTING_S:
                self._problems[key] = (names.NAME_TAKEN, str(error))
            raise
        except ForeignObject as error:
            self._problems[key] = (names.NAME_TAKEN, str(error))
            raise
        except ApiError as error:
            self._on_refusal(key, error, now)
            raise
        self._failing_since.pop(key, None)
        was_stalled = self._problems.pop(key, None) is not None
        if not job.get("status") and any(body["kind"] == "Pod" for body in plan.create):
            self._metrics.pods_created_s.observe(max(0.0, clock.now() - _created_at(job)))
        return 0.0 if was_stalled else plan.requeue_s

    async def _plan(self, key: Key, job: Object, now: float) -> Plan:
        parsed = self._jobs.parse(key)
        seen = await self._cache.see(
            job,
            parsed=parsed if isinstance(parsed, Job) else None,
            progress=self._reported(key, job["metadata"]["uid"]) or push.remembered(job.get("status") or {}),
            problem=self._problems.get(key),
            now=now,
        )
        seen = replace(seen, launchers=self._heard(key, seen), listens_since=self._listens_since or now)
        if isinstance(parsed, Job):
            return reconcile.plan(parsed, seen, now)
        return reconcile.reject(job, parsed, seen, now)

    def _heard(self, key: Key, seen: Seen) -> Mapping[str, HeardReport]:
        """The reports of the launchers of this job's pods; those of pods that are gone are forgotten."""
        uid, heard = self._launchers.get(key, ("", {}))
        there = {pod.name for pod in seen.pods}
        kept = {pod: report for pod, report in heard.items() if pod in there} if uid == self.uid_of(key) else {}
        if kept:
            self._launchers[key] = (uid, kept)
        return kept

    def _take_written(self, job: Object, now: float) -> Callable[[Resource, Object], None]:
        """Called with every object that the server returned."""
        namespace, old = job["metadata"]["namespace"], job.get("status") or {}

        def take(resource: Resource, raw: Object) -> None:
            if resource is JOB:
                self._jobs.put(raw)
                self._metrics.on_status(namespace, _created_at(job), old, raw.get("status") or {}, now)
            elif resource is CLAIM:
                self._cache.take_claim(job)
            else:
                self._cache.take(resource, raw)

        return take

    def _on_refusal(self, key: Key, error: ApiError, asked_at: float) -> None:
        """A persistent refusal is shown on the job: quota, policy, invalid object, or any error for `LASTING_S`."""
        failing_since = self._failing_since.setdefault(key, asked_at)
        if error.is_missing and error.message == JOB_NOT_FOUND.format(key[1]):
            self._jobs.drop(key)
        elif isinstance(error, InvalidObject):
            self._problems[key] = (names.INVALID_OBJECT, error.message)
        elif error.status in REFUSALS or clock.now() - failing_since >= LASTING_S:
            self._problems[key] = (error.reason or names.REFUSED, error.message)

    def _shown_within_s(self, key: Key) -> float | None:
        """Seconds until a persistent error is shown on the job; None when it is shown already or never will be."""
        failing_since = self._failing_since.get(key)
        if failing_since is None or key in self._problems:
            return None
        return max(0.0, failing_since + LASTING_S - clock.now()) or None

    def _forget(self, key: Key) -> None:
        self._failing_since.pop(key, None)
        self._problems.pop(key, None)
        self._progress.pop(key, None)
        self._launchers.pop(key, None)
        self._cache.forget(key)


def _parsed(raw: Object, trainer_image: str) -> Parsed:
    """The parsed job or its problems, even if it is nested too deeply or triggers a defect in the parser."""
    try:
        return manifest.parse(raw, default_image=trainer_image)
    except RecursionError:
        message = "is nested too deeply; no field of a pod is nested more than a few dozen levels"
        return (Violation(path="spec", value=None, message=message),)
    except Exception as error:
        if raw.get("status"):  # it was parsed once: a defect in a newer operator must not affect a running job
            raise
        logger.exception("manifest not parsed namespace=%s job=%s", *key_of(raw))
        message = (
            f"crashed the operator's parser ({type(error).__name__}), which is a defect in the operator; report it"
        )
        return (Violation(path="spec", value=None, message=message),)


def _facts(report: LauncherReport) -> tuple[object, ...]:
    """All of a report but times."""
    return report.attempt, report.state, report.failure, tuple(report.stages_s)


def _is_news(before: Progress, after: Progress) -> bool:
    """Whether anything changed other than times and numbers within the same percent."""
    facts = [(each.attempt, each.phase, each.percentage, each.checkpoint_iteration) for each in (before, after)]
    return facts[0] != facts[1]


def key_of(raw: Object) -> Key:
    """Namespace and name of an object."""
    return raw["metadata"]["namespace"], raw["metadata"]["name"]


def _version(raw: Object) -> int:
    return int(raw["metadata"]["resourceVersion"])


def _created_at(job: Object) -> float:
    return to_seconds(job["metadata"]["creationTimestamp"]) or 0.0
