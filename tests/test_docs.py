"""Pages of the repository: links lead somewhere, tables are whole, and mtj takes the options that they show."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from megatron_operator.api.schema.status import status
from megatron_operator.api.spec import spec_schema
from megatron_operator.cli.main import parser
from megatron_operator.cli.trainer import PASSED_ON
from megatron_trainjob.args.names import find_alias
from megatron_trainjob.args.tree import ARGUMENTS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for where in ("*", "docs/**/*", "examples/*/*", "benchmarks/**/*") for path in ROOT.glob(f"{where}.md")
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
PLACEHOLDERS = {"spec.FIELD", "spec.py"}
FENCED = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", page.read_text())


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    words = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading.strip()).lower() for heading in headings)
    return frozenset(re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in words)


def broken_links(page: Path) -> Iterator[str]:
    """Links to files and headings that are not there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not link.startswith("http") and (not target.exists() or (anchor and anchor not in anchors(target))):
            yield link


def broken_rows(page: Path) -> Iterator[str]:
    """Rows of tables with another number of cells than their header, or without one."""
    for table in re.findall(r"(?:^\|.*\n?)+", prose(page), flags=re.MULTILINE):
        header, *rows = table.splitlines()
        width = len(re.split(r"(?<!\\)\|", header))
        if not rows or not re.fullmatch(r"[|:\- ]+", rows[0]):
            yield header
        yield from (row for row in rows if len(re.split(r"(?<!\\)\|", row)) != width)


@cache
def options() -> dict[str, frozenset[str]]:
    """The options of each command."""
    (commands,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    return {name: frozenset(each._option_string_actions) for name, each in commands.choices.items()}


def wrong_commands(page: Path) -> Iterator[str]:
    """Calls of mtj with a command or an option that does not exist; those of the trainer have its arguments."""
    for call in re.findall(r"(?:^[ ]*(?:\$ )?|`)mtj ((?:(?!`|  #|\n).)+)", page.read_text(), flags=re.MULTILINE):
        command, *words = call.split()
        if not re.fullmatch(r"[a-z-]+", command) or command in PASSED_ON:
            continue
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        if command == "from-args":  # its source is a command of another program, with options of its own
            given -= {word for word in given if "'" in call}
        if command not in options() or given - options()[command]:
            yield call


def unknown_fields(page: Path) -> Iterator[str]:
    """Fields of spec and status, written with a dot, that a job does not have."""
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for root, path in re.findall(r"(?<![\w.])(spec|status)\.([A-Za-z_]+(?:(?:\[\])?\.[A-Za-z_]+)*)", code):
            if f"{root}.{path}" not in PLACEHOLDERS and not has_field(root, re.split(r"(?:\[\])?\.", path)):
                yield f"{root}.{path}"


def has_field(root: str, path: list[str]) -> bool:
    """Whether a job has it; the parts of Kubernetes' own objects are not looked at."""
    if (root, path[0]) == ("spec", "args"):
        return all(name in ARGUMENTS or find_alias(name, "sft") for name in path[1:])
    schema = spec_schema() if root == "spec" else status()
    for part in path:
        fields = schema.get("properties") or schema.get("items", {}).get("properties")
        if fields and part not in fields:
            return False
        schema = (fields or {}).get(part, {})
    return True


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@each_page
def test_tables_are_whole(page: Path) -> None:
    assert list(broken_rows(page)) == []


@pytest.mark.parametrize(
    "page", [each for each in PAGES if each.is_relative_to(ROOT / "docs")], ids=lambda page: page.name
)
def test_fields_that_a_page_names_exist(page: Path) -> None:
    assert list(unknown_fields(page)) == []


@pytest.mark.parametrize("page", [each for each in PAGES if "results" not in each.parts], ids=lambda page: page.name)
def test_mtj_takes_the_options_that_a_page_shows(page: Path) -> None:
    assert list(wrong_commands(page)) == []


def test_the_pages_show_most_commands() -> None:
    """Or the pattern above finds nothing."""
    shown = {word for page in PAGES for word in re.findall(r"\bmtj ([a-z][a-z-]+)", page.read_text())}
    assert len(shown & set(options())) >= 11
    assert len(PAGES) > 60


def test_the_readme_claims_no_more_than_the_numbers_show() -> None:
    (claimed,) = re.findall(r"equal transformers' to ([\de.-]+) in every layout", (ROOT / "README.md").read_text())
    (measured,) = re.findall(r"Largest difference of all: ([\de.-]+);", (ROOT / "docs" / "numerics.md").read_text())
    assert float(claimed) >= float(measured)
