"""The tests of this folder are about names, types and rules, not about how far the trainer is."""

from dataclasses import replace

import pytest

from megatron_trainjob.args.tree import ARGUMENTS


@pytest.fixture(autouse=True)
def every_argument_works(monkeypatch):
    """Arguments that do not work yet count as working, so that rules can be seen behind their status."""
    for name, argument in ARGUMENTS.items():
        if argument.status == "not yet":
            monkeypatch.setitem(ARGUMENTS, name, replace(argument, status="works"))
