"""report.html: a self-contained page that shows a run to people. Its curves come from logging.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from megatron_trainer.report import duration, facts
from megatron_trainer.report.chart import Bar, Series, bar_chart, line_chart, readable
from megatron_trainer.report.jsonl import Row, losses_in, read_rows
from megatron_trainer.report.records import Answer, Event, FinishRecord, PhaseRecord, RunInfo
from megatron_trainjob import shown

SECONDS_BETWEEN_RENDERS = 30.0
MAX_SHARE_OF_TIME = 0.01
"""A long run has many rows: rendering is throttled so that it never takes a larger share of the run than this."""

ACCURACY = "rewards/accuracies"
MAX_ROWS = 2000
"""Maximum number of steps, and of other events, in a report: more than a chart has pixels."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its heading; the legend names the lines when there are several."""

    title: str
    svg: Markup
    legend: tuple[Series, ...]


class HtmlReport:
    """Renders the file periodically during a run, and at its end.

    door: where it is written before it is renamed; without it, after a takeover, the report is not written.
    """

    def __init__(
        self, path: Path, *, rows: Path, interval: int, now: Callable[[], float], door: Path | None = None
    ) -> None:
        self.interval = interval
        self._path = path
        self._door = door or path.parent
        self._rows = rows
        self._now = now
        self._run: RunInfo | None = None
        self._finish: FinishRecord | None = None
        self._phase = "starting"
        self._next_render_at = float("-inf")

    def write(self, event: Event) -> None:
        """Records the event; renders when due, and always at the end."""
        match event:
            case RunInfo():
                self._run = event
            case PhaseRecord():
                self._phase = event.phase
            case FinishRecord():
                self._finish = event
                self._render()
        if self._now() >= self._next_render_at:
            self._render()

    def close(self) -> None:
        """Renders once more if the run ended without finishing, so that its last steps are in the report."""
        if self._finish is None:
            self._phase = "failed"
            self._render()

    def _render(self) -> None:
        if self._run is None:
            return
        started = time.monotonic()
        phase = self._finish.phase if self._finish else self._phase
        text = render(
            self._run, read_rows(self._rows, at_most=MAX_ROWS), finish=self._finish, phase=phase, now=self._now()
        )
        aside = self._door / f"{self._path.name}.tmp"
        aside.write_text(text)
        aside.replace(self._path)
        seconds = time.monotonic() - started
        self._next_render_at = self._now() + max(SECONDS_BETWEEN_RENDERS, seconds / MAX_SHARE_OF_TIME)


def render(run: RunInfo, rows: Sequence[Row], *, finish: FinishRecord | None, phase: str, now: float) -> str:
    """The whole page, with all text escaped. rows: those of logging.jsonl. now: seconds since the epoch."""
    answers: Iterable[Answer] = finish.answers if finish else ()
    page = page_template().render(
        run=run,
        phase=phase,
        is_live=phase not in ("finished", "stopped", "failed"),
        message=finish.message if finish else "",
        rendered_at=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        tiles=tiles(run, rows),
        figures=[*figures(rows), *length_figure(run.data)],
        tables=facts.tables(run, rows, finish),
        examples=list(zip_longest(facts.pieces_of(run.data), facts.thumbnails_of(run.data), fillvalue=())),
        answers=tuple(answers),
    )
    return shown.message(page)


@cache
def page_template() -> Template:
    """The page's template, compiled once a process."""
    environment = Environment(
        loader=PackageLoader("megatron_trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Charts of losses, learning rate, gradient norm, tokens per second, then the other metrics."""
    names = list(dict.fromkeys(name for row in rows for name in losses_in(row)))
    charts = [_loss_figure(rows, name) for name in names[:1]]
    charts += [
        _figure("Learning rate", rows, "learning_rate", from_zero=True),
        _figure("Gradient norm, before clipping", rows, "grad_norm", from_zero=True),
        _figure("Tokens per second, without padding", rows, "tokens_per_second", from_zero=True),
    ]
    charts += [_loss_figure(rows, name) for name in names[1:]]
    return [chart for chart in charts if chart.svg]


def length_figure(data: Mapping[str, object]) -> list[Figure]:
    """Histogram of sample lengths in the data report; None where lengths are not known before training."""
    histogram = data.get("histogram")
    if not isinstance(histogram, Mapping):
        return []
    bars = [
        Bar(name=f"{low + 1:,}-{high:,}", tick=f"{high:,}", count=rows)
        for (low, high), rows in zip(pairwise(histogram["edges"]), histogram["rows"], strict=True)
    ]
    svg = bar_chart(bars, x_label="tokens of a sample, up to", y_label="samples")
    return [Figure(title="Samples by their length in tokens", svg=Markup(svg), legend=())]


def tiles(run: RunInfo, rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(label, value, note) of the most important numbers."""
    steps = [row for row in rows if "learning_rate" in row]
    if not steps:
        return []
    last = steps[-1]
    iteration = int(_number(last, "iteration"))
    found = [("Iterations", f"{iteration:,}", f"of {run.total_iterations:,}")]
    for name, value in list(losses_in(last).items())[:1]:
        first = _number(steps[0], name)
        found.append(("Training loss", readable(value), f"{readable(first)} at the start"))
        found += _validation_tile(rows, f"eval_{name}")
    found += _accuracy_tile(rows)
    rates = [_number(row, "tokens_per_second") for row in steps[1:] or steps]
    tokens = sum(int(_number(row, "tokens")) for row in steps)
    found.append(("Tokens per second", readable(sum(rates) / len(rates)), f"{tokens:,} tokens trained on"))
    if "mfu" in last:
        found.append(("Model FLOPs utilization", f"{100 * _number(last, 'mfu'):.1f} %", "of the device's peak"))
    found.append(("Elapsed", duration.in_words(_number(last, "elapsed_s")), "since the last start"))
    return found


def _loss_figure(rows: Sequence[Row], name: str) -> Figure:
    series = (
        Series(name="training", css_class="first", points=_points(rows, name)),
        Series(name="validation", css_class="second", points=_points(rows, f"eval_{name}")),
    )
    drawn = tuple(one for one in series if one.points)
    svg = line_chart(drawn, x_label="iteration", y_label=name)
    title = "Loss" if name == "lm loss" else name[:1].upper() + name[1:].replace("/", ", ")
    return Figure(title=title, svg=Markup(svg), legend=drawn if len(drawn) > 1 else ())


def _figure(title: str, rows: Sequence[Row], key: str, *, from_zero: bool) -> Figure:
    series = Series(name=title.split(",")[0].lower(), css_class="first", points=_points(rows, key))
    svg = line_chart([series], x_label="iteration", y_label=title, from_zero=from_zero)
    return Figure(title=title, svg=Markup(svg), legend=())


def _validation_tile(rows: Sequence[Row], key: str) -> list[tuple[str, str, str]]:
    values = [_number(row, key) for row in rows if key in row]
    if not values:
        return []
    note = f"best {readable(min(values))} of {len(values)} rounds" if len(values) > 1 else "one round"
    return [("Validation loss", readable(values[-1]), note)]


def _accuracy_tile(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The accuracy of preference training: how often the chosen answer gets the higher reward."""
    for key, where in ((f"eval_{ACCURACY}", "of the validation pairs"), (ACCURACY, "of the last training pairs")):
        values = [_number(row, key) for row in rows if key in row]
        if values:
            return [("Reward accuracy", f"{100 * values[-1]:.1f} %", f"{where}; {100 * values[0]:.1f} % at first")]
    return []


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [(_number(row, "iteration"), _number(row, key)) for row in rows if key in row]


def _number(row: Row, key: str) -> float:
    """The value as a number; NaN if it is not one (a non-finite loss is stored as text)."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
