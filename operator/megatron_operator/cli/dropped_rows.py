"""The rows that a run on this machine does not train on, as lines for people: how many of each data set, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_trainjob import input_file
from megatron_trainjob.checkpoint_folder import DATA_REPORT
from megatron_trainjob.progress import Progress

SHOWN_REASONS = 2


def lines(progress: Progress | None) -> list[str]:
    """One line for each data set that lost rows; none while the report is not written, as for streams."""
    if progress is None or not progress.report_path:
        return []
    try:
        report = input_file.read_json(Path(progress.report_path).parent / DATA_REPORT)
    except (OSError, ValueError):
        return []
    sources = [*report.get("datasets", ()), *report.get("validation", ())]
    return [_line(source, report=DATA_REPORT) for source in sources if source.get("dropped")]


def _line(source: Mapping[str, Any], *, report: str) -> str:
    dropped = source["dropped"]
    shown = [
        f"{reason['rows']} x {reason['reason']} (first at {reason['example_location']})"
        for reason in dropped[:SHOWN_REASONS]
    ]
    more = len(dropped) - len(shown)
    others = [f"{more} more {'reason' if more == 1 else 'reasons'} in {report}"] * bool(more)
    rows = sum(reason["rows"] for reason in dropped)
    return f"{source['name']}: {rows} of {source['rows_read']} rows dropped: {'; '.join([*shown, *others])}"
