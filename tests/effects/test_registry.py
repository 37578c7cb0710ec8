"""The promise behind docs/arguments.md: whatever is called `works` has a test that shows its effect."""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from megatron_trainjob.args.tree import ARGUMENTS
from tests.effects.registry import EFFECTS


@pytest.fixture(scope="module", autouse=True)
def every_effect_module():
    for path in sorted(Path(__file__).parent.glob("test_*_effects.py")):
        importlib.import_module(f"tests.effects.{path.stem}")


def test_every_argument_that_works_has_an_effect_test():
    working = {name for name, argument in ARGUMENTS.items() if argument.status == "works"}
    assert sorted(working - EFFECTS.keys()) == []


def test_every_effect_names_an_argument_and_is_a_test_that_runs():
    assert sorted(EFFECTS.keys() - ARGUMENTS.keys()) == []
    tests = [test.__name__ for found in EFFECTS.values() for test in found]
    assert [name for name in tests if not name.startswith("test_")] == []


def test_every_effect_is_shown_by_a_test_that_make_test_runs():
    assert sorted(name for name, tests in EFFECTS.items() if all(map(is_left_out, tests))) == []


def is_left_out(test: Callable[..., object]) -> bool:
    """Whether the test, or each of its cases, is slow or needs a GPU."""
    of_module = getattr(sys.modules[test.__module__], "pytestmark", [])
    marks = [*(of_module if isinstance(of_module, list) else [of_module]), *getattr(test, "pytestmark", [])]
    cases = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    return is_any(marks) or any(all(is_any(getattr(case, "marks", ())) for case in each) for each in map(list, cases))


def is_any(marks: Iterable[pytest.Mark | pytest.MarkDecorator]) -> bool:
    return any(mark.name in ("slow", "gpu") for mark in marks)
