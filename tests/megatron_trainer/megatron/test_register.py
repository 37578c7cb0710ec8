"""The register of changes to megatron-core: complete, and written against the installed source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import megatron_trainer
from megatron_trainer.megatron.changes import Change
from megatron_trainer.megatron.register import ALL_CHANGES, digest, problem, table

SOURCES = sorted(Path(megatron_trainer.__file__).parent.rglob("*.py"))
CASES = [(change, symbol) for change in ALL_CHANGES for symbol in change.rests_on]


@pytest.mark.parametrize(("change", "symbol"), CASES, ids=[symbol.partition(":")[2] for _, symbol in CASES])
def test_the_source_that_a_change_rests_on_is_the_reviewed_one(change: Change, symbol: str):
    assert not problem(change, symbol), problem(change, symbol)


def test_a_changed_source_names_the_symbol_and_what_to_review():
    symbol = next(iter(ALL_CHANGES[0].rests_on))
    stale = Change(
        ours="models.x",
        why="It is wrong.",
        until="it is right",
        backends="CPU",
        rests_on={symbol: "000000000000", "megatron.core.utils:no_such_function": "000000000000"},
    )
    assert problem(stale, symbol) == (
        f"{symbol} is now {digest(symbol)}, was 000000000000. "
        "Review megatron_trainer.models.x: It is wrong. It can go when it is right."
    )
    assert "defines no no_such_function" in problem(stale, "megatron.core.utils:no_such_function")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_symbol_that_is_replaced_or_subclassed_is_registered(path: Path):
    module = ".".join(path.relative_to(Path(megatron_trainer.__file__).parent).with_suffix("").parts)
    registered = {change.ours for change in ALL_CHANGES}
    assert not list(changed_symbols(path)) or module in registered, f"{module} changes {list(changed_symbols(path))}"


def changed_symbols(path: Path) -> Iterator[str]:
    """Assignments to attributes of what a file imports from megatron-core, and classes derived from its classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron.core")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _root(node.value) in imported and isinstance(node.value, ast.Attribute):
            imported |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from (
                ast.unparse(target)
                for target in node.targets
                if isinstance(target, ast.Attribute) and _root(target) in imported
            )
        elif isinstance(node, ast.ClassDef):
            yield from (f"{node.name}({ast.unparse(base)})" for base in node.bases if _root(base) in imported)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_the_scan_finds_every_kind_of_change(tmp_path: Path):
    source = """
from megatron.core.optimizer import distrib_optimizer
from megatron.core.transformer import TransformerLayer
def install():
    optimizer_class = distrib_optimizer.DistributedOptimizer
    optimizer_class.load = 1
    distrib_optimizer.name = 2
class Ours(TransformerLayer):
    pass
"""
    path = tmp_path / "patched.py"
    path.write_text(source)
    assert sorted(changed_symbols(path)) == ["Ours(TransformerLayer)", "distrib_optimizer.name", "optimizer_class.load"]


def test_the_documentation_shows_the_register():
    page = (Path(__file__).parents[3] / "docs" / "moving-megatron-core.md").read_text(encoding="utf-8")
    assert table() in page, "docs/moving-megatron-core.md is not up to date: run make generate"
