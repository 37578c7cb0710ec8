"""The dashboard's queries, and whether metrics that an operator served have the series that these ask for.

python -m tests.support.operator.dashboard FILE    # what /metrics said
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from local_cluster import helm_chart

DASHBOARD = helm_chart.CHART / "files" / "dashboard.json"
SERIES = re.compile(r"\b(megatron_\w+)(?:\{(.*?)\})?")
MATCHER = re.compile(r'(\w+)(=~|!=|=)"(.*?)"')


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of a panel. labels: those that it groups by, or that its legend shows."""

    panel: str
    text: str
    labels: frozenset[str]

    @property
    def series(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """Name of each series that it reads, with (label, operator, value) of its matchers."""
        return [(name, MATCHER.findall(matchers)) for name, matchers in SERIES.findall(self.text)]


def queries() -> Iterator[Query]:
    """All of them."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            grouped = re.findall(r"by \((.*?)\)", target["expr"])
            labels = {name.strip() for names in grouped for name in names.split(",")}
            labels |= set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            yield Query(panel=panel["title"], text=target["expr"], labels=frozenset(labels))


def unanswered(metrics: str) -> dict[str, str]:
    """By series: the panel that asks for it, where no sample has its name, its matchers' values and its labels."""
    families = text_string_to_metric_families(metrics)
    samples = [(sample.name, sample.labels) for family in families for sample in family.samples]
    return {
        name: query.panel
        for query in queries()
        for name, matchers in query.series
        if not any(of == name and _fits(labels, matchers, query.labels) for of, labels in samples)
    }


def _fits(labels: dict[str, str], matchers: list[tuple[str, str, str]], shown: frozenset[str]) -> bool:
    return shown <= labels.keys() and all(
        label in labels and (value.startswith("$") or (labels[label] == value) == (operator != "!="))
        for label, operator, value in matchers
    )


if __name__ == "__main__":
    print(unanswered(Path(sys.argv[1]).read_text()))
