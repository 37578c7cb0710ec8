"""Long matrices of cases: a few stand for each kind in `make test`, the others run in `make test-slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The cases for `parametrize`, all but those of `quick` marked slow; a tuple is one case of several parameters.

    Raises ValueError for a quick case that is none of the cases: a renamed one would leave `make test` unnoticed.
    """
    cases = list(cases)
    if missing := [case for case in quick if case not in cases]:
        raise ValueError(f"not among the cases: {missing}")
    return [case if case in quick else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
