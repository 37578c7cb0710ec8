"""The line to a launcher on this machine: its report is a file in the pod's folder, and so is the answer to it."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_operator.core.attempts import HeardReport
from megatron_trainjob import input_file, launcher
from megatron_trainjob.launcher import Directive


def read(folder: Path) -> tuple[HeardReport, int] | None:
    """The last report and its number, None when there is none that can be read."""
    path = folder / launcher.REPORT_FILE
    try:
        body, at = input_file.read_json(path), path.stat().st_mtime
        return HeardReport(report=launcher.read_report(body), at=at), int(body["number"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def clear(folder: Path) -> None:
    """Removes what an earlier pod of this name has left: its report would speak for the new one."""
    for name in (launcher.REPORT_FILE, launcher.DIRECTIVE_FILE):
        (folder / name).unlink(missing_ok=True)


def answer(folder: Path, directive: Directive, number: int) -> None:
    """Answers the report with this number."""
    path = folder / launcher.DIRECTIVE_FILE
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps({**directive.to_fields(), "number": number}))
    aside.replace(path)
