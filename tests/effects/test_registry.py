"""The promise behind docs/arguments.md: whatever is called `works` has a test that shows its effect."""

import importlib
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
    assert [test.__name__ for test in EFFECTS.values() if not test.__name__.startswith("test_")] == []
