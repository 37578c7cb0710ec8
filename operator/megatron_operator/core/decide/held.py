"""A gang that trains although its manifest is refused: how long it may, with what can be read of the manifest.

`kubectl scale` bypasses the admission policy, and an older operator may have accepted what this one refuses: neither
ends a training gang. It is not restarted, so that its first failure, its silence and its deadline end the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.api.spec import readable
from megatron_operator.api.values import DEFAULT_HANG_TIMEOUT_S
from megatron_operator.core.decide import deadline, hang, in_place
from megatron_operator.core.decide.decision import Fail
from megatron_operator.core.observe import Seen

Object = Mapping[str, Any]


def trains(manifest: Object, seen: Seen, now: float) -> bool:
    """Whether a gang accepted before trains: ranks run, and none has failed. A launcher that waits runs none."""
    spec, metadata = manifest.get("spec") or {}, manifest["metadata"]
    was_accepted = seen.status.get("observedGeneration") == metadata.get("generation", 0)
    if not was_accepted and "elasticPolicy" not in spec:
        return False
    pods = in_place.with_failures(seen, now).current
    return any(not pod.is_finished for pod in pods) and all(pod.phase != "Failed" for pod in pods)


def decide(manifest: Object, seen: Seen, now: float) -> Fail | None:
    """Fail when the gang has run for too long, or has been silent for too long."""
    ends = deadline.ends_at(seen, _deadline_s(manifest))
    if ends is not None and now >= ends:
        return deadline.exceeded(_deadline_s(manifest))
    ends = _silent_until(manifest, seen)
    if ends is None or now < ends or seen.beat is None:
        return None
    message = hang.message(_timeout_s(manifest), seen.beat.phase)
    return Fail(reason=names.HUNG, message=f"{message} A job whose manifest is refused is not restarted.")


def wake_at(manifest: Object, seen: Seen) -> float | None:
    """When that may be so."""
    moments = (deadline.ends_at(seen, _deadline_s(manifest)), _silent_until(manifest, seen))
    return min((each for each in moments if each is not None), default=None)


def _silent_until(manifest: Object, seen: Seen) -> float | None:
    return hang.silent_until(seen, _timeout_s(manifest), seen.status.get("replicas") or len(seen.current))


def _deadline_s(manifest: Object) -> int | None:
    return (readable(manifest, "runPolicy") or {}).get("activeDeadlineSeconds")


def _timeout_s(manifest: Object) -> int:
    policy = readable(manifest, "failurePolicy") or {}
    return int(policy.get("hangTimeoutSeconds", DEFAULT_HANG_TIMEOUT_S))
