"""Lists of hosts, as launchers read them: files with `name slots=8`, `a:8,b:8`, and which of them --include chooses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from megatron_trainjob.args import yaml_file

Files = Callable[[str], str | None]
Hosts = Mapping[str, int | None]
"""The processes of each host, None where that is not said."""
HOST = re.compile(r"(?P<name>[^\s:#]+)(?::(?P<count>\d+)|.*?\b(?:slots|max_slots)\s*=\s*(?P<slots>\d+))?.*")


def no_file(name: str) -> str | None:
    """No file is known."""
    return None


def of_text(text: str) -> Hosts:
    """The hosts of a file, or of a list with one on each line."""
    found: dict[str, int | None] = {}
    for line in (each.strip() for each in text.splitlines()):
        if line and not line.startswith("#") and (host := HOST.fullmatch(line)):
            count = host["count"] or host["slots"]
            found[host["name"]] = int(count) if count else None
    return found


def chosen(known: Hosts, include: str, exclude: str) -> Hosts:
    """Those of `--include a:0,1@b`, or all but `--exclude a:2@b`; an included one need not be known."""
    named, without = _selected(include), _selected(exclude)
    if named:
        return {name: len(slots) or known.get(name) for name, slots in named.items()}
    left: dict[str, int | None] = {}
    for name, count in known.items():
        slots = without.get(name)
        if slots is None or (slots and count is not None and count > len(slots)):
            left[name] = count if slots is None or count is None else count - len(slots)
    return left


def slots(hosts: Hosts) -> int | None:
    """The processes of each host, None where they differ or are not known."""
    counts = set(hosts.values())
    return counts.pop() if len(counts) == 1 else None


def numbers(text: str) -> dict[str, str]:
    """The entries of a YAML file, as text."""
    try:
        loaded = next(iter(yaml_file.parse_text(text)), None)
    except yaml_file.YamlProblem:
        return {}
    return {str(name): str(value) for name, value in loaded.items()} if isinstance(loaded, dict) else {}


def _selected(text: str) -> dict[str, tuple[str, ...]]:
    """Host -> its slots, none for all of them."""
    parts = [part.partition(":") for part in text.split("@") if part]
    return {name: tuple(filter(None, listed.split(","))) for name, _, listed in parts}
