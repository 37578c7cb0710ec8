"""spec.strict and mtj validate --strict: what warns is refused under the same field, for pairs of any arguments."""

import pytest

from megatron_operator import manifest
from megatron_operator.core.job import Job
from megatron_trainjob.args.field import TRAINING_TASKS
from tests.support.arguments.typical_values import pairs


def job(task: str, args: dict[str, object]) -> dict[str, object]:
    """A manifest of one node of eight."""
    spec = {"task": task, "numNodes": 1, "resourcesPerNode": {"limits": {"nvidia.com/gpu": "8"}}, "args": args}
    checkpoint = {"pvc": {"claimName": "c"}}
    return {
        "apiVersion": "megatrontrain.dev/v1alpha1",
        "kind": "MegatronTrainJob",
        "metadata": {"name": "pair"},
        "spec": {**spec, "checkpoint": checkpoint},
    }


@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_a_warning_is_an_error_with_strict(task):
    warned = 0
    for given in pairs(task, count=120, seed=7):
        plain, strict = manifest.parse(job(task, given)), manifest.parse(job(task, given), strict=True)
        if not isinstance(plain, Job):
            assert strict == plain
        elif plain.warnings:
            warned += 1
            assert isinstance(strict, tuple)
            assert {each.path for each in strict} == {each.path for each in plain.warnings}
            assert {each.severity for each in strict} == {"error"}
        else:
            assert isinstance(strict, Job)
    assert warned > 30
