"""Every name that a file imports from another one of this repository exists, also in benchmarks, which no test runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("operator", "trainer", "tests", "local_cluster", "benchmarks", "examples", "charts")
PACKAGES = {
    "megatron_operator": ROOT / "operator",
    "megatron_trainer": ROOT / "trainer",
    "megatron_trainjob": ROOT / "trainer",
    "tests": ROOT,
    "local_cluster": ROOT,
}


@cache
def defined(module: str) -> frozenset[str] | None:
    """The names that a module of ours has, its submodules included; None if there is no such module."""
    path = PACKAGES[module.split(".")[0]].joinpath(*module.split("."))
    if path.is_dir():
        inside = {child.stem for child in path.iterdir() if child.suffix == ".py" or child.is_dir()}
        file = path / "__init__.py"
        return frozenset(inside | (set(_names(file)) if file.exists() else set()))
    file = path.with_suffix(".py")
    return frozenset(_names(file)) if file.exists() else None


def _names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Import() | ast.ImportFrom():
                yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)


def broken(file: Path) -> Iterator[str]:
    """What this file imports that does not exist, as messages."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module or node.module.split(".")[0] not in PACKAGES:
            continue
        known = defined(node.module)
        missing = [alias.name for alias in node.names if known is None or alias.name not in known]
        yield from (f"{file.relative_to(ROOT)}:{node.lineno}: {node.module} has no {name}" for name in missing)


def test_every_name_that_is_imported_exists():
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 900, "the folders are found"
    assert [message for file in files for message in broken(file)] == []


def test_what_users_start_imports_nothing_of_the_tests():
    text = {file.name: file.read_text() for file in (ROOT / "local_cluster").glob("*.py")}
    assert [name for name, content in text.items() if "from tests" in content or "import tests" in content] == []


def test_a_name_that_is_gone_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "stale.py"
    file.write_text(
        "from megatron_operator.core.timestamp import to_text\nfrom megatron_trainjob import environment, gone\n"
    )
    assert list(broken(file)) == [
        "stale.py:1: megatron_operator.core.timestamp has no to_text",
        "stale.py:2: megatron_trainjob has no gone",
    ]
