"""The facts about a run as pairs of name and text, grouped under headings, for people. No layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megatron_trainer.report.chart import readable
from megatron_trainer.report.jsonl import Row
from megatron_trainer.report.records import FinishRecord, RunInfo

Pairs = list[tuple[str, str]]

AXES = {
    "tp": "Tensor parallel",
    "pp": "Pipeline parallel",
    "cp": "Context parallel",
    "dp": "Data parallel",
    "ep": "Expert parallel",
    "etp": "Expert tensor parallel",
}


def tables(run: RunInfo, rows: Sequence[Row], finish: FinishRecord | None) -> list[tuple[str, Pairs]]:
    """(heading, pairs) of every non-empty group. rows: those of logging.jsonl."""
    groups = [
        ("Model", model_facts(run)),
        ("Layout", layout_facts(run)),
        ("Data", data_facts(run.data)),
        ("Outputs", pairs(outputs(rows, finish))),
        ("Arguments given", pairs(run.arguments_given)),
    ]
    return [(heading, facts) for heading, facts in groups if facts]


def model_facts(run: RunInfo) -> Pairs:
    """The model that is trained."""
    share = 100 * run.num_trainable_parameters / run.num_parameters if run.num_parameters else 0.0
    return [
        ("Model", run.model),
        ("Task", run.task),
        ("Tuning", run.train_type),
        ("Parameters", f"{run.num_parameters:,}"),
        ("Trained parameters", f"{run.num_trainable_parameters:,} ({share:.2f} %)"),
        ("Number format", run.dtype),
        ("Longest sample allowed", f"{run.max_length:,} tokens"),
    ]


def layout_facts(run: RunInfo) -> Pairs:
    """The parallel layout; axes of size 1 are left out."""
    micro_batches = run.global_batch_size // (run.micro_batch_size * run.layout.get("dp", 1))
    facts = [("Processes", f"{run.world_size} x {run.device}")]
    facts += [(AXES.get(name, name), f"{size} ranks") for name, size in run.layout.items() if size > 1]
    facts += [
        ("Global batch", f"{run.global_batch_size:,} samples"),
        ("Micro-batch", f"{run.micro_batch_size:,} samples, {micro_batches:,} per step and rank"),
    ]
    if run.start_iteration:
        facts.append(("Resumed after", f"iteration {run.start_iteration:,}"))
    return facts


def data_facts(report: Mapping[str, object]) -> Pairs:
    """The data report (data/report.py as JSON): each dataset with its dropped rows, then totals and lengths."""
    facts: Pairs = []
    for heading, key in (("Training", "datasets"), ("Validation", "validation")):
        for source in _mappings(report.get(key)):
            facts.append((heading, _source(source)))
            facts += [("Note", f"{source['name']}: {note}") for note in _texts(source.get("notes"))]
            facts += [("Dropped", _drop(drop)) for drop in _mappings(source.get("dropped"))]
    if report.get("stop_words"):
        facts.append(("Answers end with", ", ".join(_texts(report["stop_words"]))))
    if "length_min" in report:
        low, median, high = (text(report[f"length_{name}"]) for name in ("min", "median", "max"))
        facts.append(("Lengths", f"{low} to {high} tokens, median {median}"))
    if "tokens_per_epoch" in report:
        samples, tokens = text(report["samples"]), text(report["tokens_per_epoch"])
        facts.append(("An epoch", f"{samples} samples, {tokens} tokens"))
    images = report.get("images")
    if isinstance(images, Mapping):
        facts += _images(images)
    packing = report.get("packing")
    if isinstance(packing, Mapping):
        rows, length, fill = text(packing["rows"]), text(packing["length"]), float(packing["fill"])
        facts.append(("Packed", f"{rows} rows of {length} tokens, {100 * fill:.2f} % filled"))
    return facts


def _images(images: Mapping[str, Any]) -> Pairs:
    """The numbers of data/report.py's ImageReport."""
    videos = f" and {text(images['videos'])} videos" if images["videos"] else ""
    sizes = (images[name] for name in ("smallest", "median", "largest"))
    smallest, median, largest = (f"{width:,} x {height:,}" for width, height in sizes)
    low, middle, high = (text(images[f"tokens_{name}"]) for name in ("min", "median", "max"))
    return [
        ("Images", f"{text(images['images'])}{videos}, {smallest} to {largest} pixels, median {median}"),
        ("Tokens of images", f"{text(images['tokens'])}; {low} to {high} for one, median {middle}"),
    ]


def thumbnails_of(report: Mapping[str, object]) -> list[list[str]]:
    """The pictures beside the examples of the data report, as data URIs."""
    found = report.get("thumbnails") or ()
    assert isinstance(found, list | tuple)
    return [[str(uri) for uri in uris if str(uri).startswith("data:image/jpeg;base64,")] for uris in found]


def pieces_of(report: Mapping[str, object]) -> list[list[tuple[str, float]]]:
    """The examples of the data report: sequences in pieces of (text, weight of the loss)."""
    sequences: object = report.get("examples") or ()
    assert isinstance(sequences, list | tuple)
    return [[(str(piece), float(weight)) for piece, weight in sequence] for sequence in sequences]


def examples_of(report: Mapping[str, object]) -> list[str]:
    """The examples as text, trained parts in brackets."""
    return [
        "".join(f"\u27e6{piece}\u27e7" if weight else piece for piece, weight in sequence)
        for sequence in pieces_of(report)
    ]


def outputs(rows: Sequence[Row], finish: FinishRecord | None) -> dict[str, object]:
    """Paths by name: the outputs at the end of the run, or its newest checkpoint so far."""
    checkpoints = [row["checkpoint"] for row in rows if "checkpoint" in row]
    newest = {"checkpoint": checkpoints[-1]} if checkpoints else {}
    return newest | dict(finish.outputs if finish else {})


def pairs(values: Mapping[str, object]) -> Pairs:
    """Every entry, its value as text."""
    return [(name, text(value)) for name, value in values.items()]


def text(value: object) -> str:
    """A value as people and YAML write it: true, null, 1,000, 0.001, [a, b]."""
    match value:
        case bool() | None:
            return json.dumps(value)
        case int():
            return f"{value:,}"
        case float():
            return readable(value)
        case str():
            return value
        case list() | tuple():
            return f"[{', '.join(map(text, value))}]"
        case _:
            return json.dumps(value, default=str, ensure_ascii=False)


def _source(source: Mapping[str, object]) -> str:
    """One dataset: "/data/train.jsonl: 398 of 400 rows, 24,018 tokens (5,650 trained), 1 row truncated"."""
    if source.get("rows_kept") is None:
        return f"{source['name']}: read and tokenized while training"
    kept, read, tokens = text(source["rows_kept"]), text(source["rows_read"]), text(source["tokens"])
    line = f"{source['name']}: {kept} of {read} rows, {tokens} tokens ({text(source['trained_tokens'])} trained)"
    truncated = source.get("rows_truncated")
    return f"{line}, {_rows(truncated)} truncated" if truncated else line


def _drop(drop: Mapping[str, object]) -> str:
    """Rows with one reason: "2 rows: not JSON; the first is a.jsonl:12 (Expecting value: line 1 column 15)"."""
    detail = f" ({drop['example_detail']})" if drop["example_detail"] else ""
    return f"{_rows(drop['rows'])}: {drop['reason']}; the first is {drop['example_location']}{detail}"


def _rows(count: object) -> str:
    return f"{text(count)} {'row' if count == 1 else 'rows'}"


def _mappings(value: object) -> Iterable[Mapping[str, object]]:
    return value if isinstance(value, list | tuple) else ()


def _texts(value: object) -> Iterable[str]:
    return [str(entry) for entry in value] if isinstance(value, list | tuple) else ()
