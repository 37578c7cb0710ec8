"""decide/program: a program that is not in the image ends the job at once; other failed starts are tried again."""

from __future__ import annotations

import pytest

from megatron_operator.api import names
from megatron_operator.core.decide import program, restart
from megatron_operator.core.decide.decision import Fail, Restart
from tests.support.operator.job_values import NOW, failed, job, pod, seen

RUNC = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
PROCESS = f"{RUNC}unable to start container process: "
NO_TORCHRUN = f'{PROCESS}exec: "torchrun": executable file not found in $PATH: unknown'


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (NO_TORCHRUN, '"torchrun": not found in $PATH'),
        (
            f'{PROCESS}exec: "/run.sh": stat /run.sh: no such file or directory: unknown',
            '"/run.sh": no such file or directory',
        ),
        (
            f'{PROCESS}exec: "/etc/hosts": permission denied: unknown',
            '"/etc/hosts": permission denied',
        ),
        (f"{RUNC}exec /bin/tool: exec format error: unknown", '"/bin/tool": exec format error'),
        ("executable file `torchrun` not found in $PATH: No such file or directory", '"torchrun": not found in $PATH'),
    ],
)
def test_a_program_that_the_image_cannot_run_is_named(message: str, refusal: str):
    assert program.refusal("StartError", message) == refusal


@pytest.mark.parametrize(
    "message",
    [
        f"{RUNC}error running hook #0: fork/exec /usr/bin/nvidia-container-runtime-hook: no such file or directory",
        f'{RUNC}error mounting "/data" to rootfs at "/data": no such file or directory: unknown',
        f"{RUNC}can't get final child's PID from pipe: EOF: unknown",
        "context deadline exceeded",
        "",
    ],
)
def test_other_failed_starts_are_tried_again_and_counted(message: str):
    assert program.refusal("StartError", message) == ""
    decision = restart.decide(job(), seen(failed(0, 128, reason="StartError", message=message), pod(1)), NOW)
    assert isinstance(decision, Restart)
    assert decision.counters.counted == 1


def test_a_program_that_complains_about_a_missing_file_itself_is_no_failed_start():
    assert program.refusal("Error", NO_TORCHRUN) == ""


@pytest.mark.parametrize(("reason", "code"), [("StartError", 128), ("ContainerCannotRun", 127)])
def test_a_missing_program_fails_the_job_at_once_though_its_peer_ended_first(reason: str, code: int):
    missing = failed(1, code, reason=reason, message=NO_TORCHRUN)
    decision = restart.decide(job(), seen(failed(0, 1, finished_at=NOW - 50), missing), NOW)
    assert isinstance(decision, Fail)
    assert (decision.reason, decision.failure.pod) == (names.STARTUP_FAILED, "tune-a0-worker-0")
    assert decision.message == (
        'Pod tune-a0-worker-0 (node node-1) cannot start "torchrun": not found in $PATH. '
        "Correct spec.command or spec.image in a new job."
    )


def test_a_rule_of_the_job_goes_before():
    rules = {"failurePolicy": {"rules": [{"onReasons": ["StartError"], "action": "Restart"}]}}
    missing = failed(0, 128, reason="StartError", message=NO_TORCHRUN)
    assert isinstance(restart.decide(job(rules), seen(missing, pod(1)), NOW), Restart)
