"""The changes to megatron-core against its installed source, and as a table for the documentation.

A test fails when a source no longer matches its digest: for a new version these places, listed in
docs/moving-megatron-core.md, are reviewed instead of failing in a training run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from megatron_trainer.megatron.changes import CHANGES, Change
from megatron_trainer.megatron.changes_for_speed import CHANGES_FOR_SPEED

ALL_CHANGES = (*CHANGES, *CHANGES_FOR_SPEED)


def digest(symbol: str) -> str:
    """The first 12 hex digits of the SHA-256 of a symbol's source, as in the installed file (even after patching).

    symbol: module:qualified name of a function or class. Raises LookupError if there is no such symbol.
    """
    module, _, qualified_name = symbol.partition(":")
    path = _file(module)
    if not path.exists():
        raise LookupError(f"{symbol}: megatron-core has no module {module}")
    source = path.read_text(encoding="utf-8")
    node: ast.Module | ast.FunctionDef | ast.ClassDef = ast.parse(source)
    for name in qualified_name.split("."):
        found = _named(node.body, name)
        if found is None:
            raise LookupError(f"{symbol}: {module} defines no {name}")
        node = found
    return hashlib.sha256((ast.get_source_segment(source, node) or "").encode()).hexdigest()[:12]


def _file(module: str) -> Path:
    """The file of a module of megatron-core, without importing it."""
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*module.split(".")[2:]).with_suffix(".py")


def _named(body: Sequence[ast.stmt], name: str) -> ast.FunctionDef | ast.ClassDef | None:
    definitions = (node for statement in body for node in (statement, *getattr(statement, "orelse", ())))
    return next((n for n in definitions if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name), None)


def problem(change: Change, symbol: str) -> str:
    """What to review if the source of a symbol differs from the one the change was written against; else ""."""
    try:
        now = digest(symbol)
    except LookupError as err:
        return f"{err}. {_review(change)}"
    expected = change.rests_on[symbol]
    return "" if now == expected else f"{symbol} is now {now}, was {expected}. {_review(change)}"


def _review(change: Change) -> str:
    return f"Review megatron_trainer.{change.ours}: {change.why} It can go when {change.until}."


def table() -> str:
    """The register as a Markdown table for docs/moving-megatron-core.md."""
    head = "| what it rests on | changed in | why | where | can go when | upstream |\n|---|---|---|---|---|---|\n"
    return head + "".join(map(_row, ALL_CHANGES))


def _row(change: Change) -> str:
    symbols = ", ".join(f"`{symbol.partition(':')[2]}`" for symbol in change.rests_on)
    cells = (symbols, f"`{change.ours}`", change.why, change.backends, change.until, change.upstream)
    return f"| {' | '.join(cells)} |\n"
