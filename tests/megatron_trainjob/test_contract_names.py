"""What operator and trainer say to each other stands once, in the contract."""

import ast
from pathlib import Path

import pytest

import megatron_operator
import megatron_trainer
from megatron_operator.core import termination as of_operator
from megatron_trainjob import environment, images, kubeflow_push, progress
from megatron_trainjob.termination import LOG, TerminationRecord

NAMES = {value for value in vars(environment).values() if isinstance(value, str) and value.isupper()}
FURTHER = {LOG, images.OPERATOR, images.TRAINER, progress.FILE, kubeflow_push.STATUS, kubeflow_push.PERCENTAGE}


def literals(package) -> dict[object, str]:
    """Every string and number of a package's code, with a file that holds it."""
    files = Path(package.__path__[0]).rglob("*.py")
    return {
        node.value: str(path)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int)
    }


@pytest.mark.parametrize("package", [megatron_operator, megatron_trainer], ids=lambda package: package.__name__)
def test_names_of_the_contract_are_written_in_neither_half(package):
    found = literals(package)
    wrong = {name: found[name] for name in {*NAMES, *FURTHER, environment.DEFAULT_MASTER_PORT} if name in found}
    assert {"MTJ_RESUME", "MASTER_ADDR", "KUBEFLOW_TRAINER_SERVER_URL"} <= NAMES
    assert wrong == {}


@pytest.mark.parametrize("iteration", [None, 7])
def test_operator_reads_the_record_that_the_launcher_leaves(iteration):
    written = TerminationRecord(exit_code=65, reason="BAD_DATA", rank=3, iteration=iteration, message="m" * 5000)
    read = of_operator.read(written.to_json())
    assert (read.exit_code, read.reason, read.message, read.iteration) == (65, "BAD_DATA", "m" * 1024, iteration)


@pytest.mark.parametrize("character", ["m", "\N{CJK UNIFIED IDEOGRAPH-9519}", '"'])
def test_a_record_in_any_script_fits_where_the_kubelet_reads_it(character):
    longest = {"host": "h" * 253, "stack": character * 512, "gpu_error": "G" * 512}
    written = TerminationRecord(
        exit_code=65, reason="BAD_DATA", rank=3, iteration=1, message=character * 1024, **longest
    )
    text = written.to_json()
    assert len(text.encode()) <= 4096
    read = of_operator.read(text)
    assert (read.exit_code, read.gpu_error, {*read.message} <= {character}) == (65, "G" * 512, True)
