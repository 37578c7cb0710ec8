"""Scaled runs with stand-ins: a tiny model of the family, its Megatron checkpoint, data of the task's kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.arguments.scaled_runs import ScaledRun
from tests.support.data import preference_data
from tests.support.models import prediction_model, retrieval_truth, seeing_model, tiny_model
from tests.support.ranks import exporting, tiny_run

ROWS = 48
OF_CACHED = ("max_length", "add_non_thinking_prefix", "loss_scale")
PLACES_OF_MODELS = ("load", "ref_load", "mcore_model")
TOKENS = ("<|think|>", "<|answer|>")
JUDGED = {
    "generative_reranker_positive_token": "a",
    "generative_reranker_negative_token": "t",
    "max_length": 512,
}
"""The tiny tokenizer has neither yes nor no, and spells the question of the judge in many tokens."""


@dataclass(frozen=True)
class StandIns:
    """Files below `root`, made once each."""

    root: Path

    def model(self, name: str, *, num_predicting: int = 0) -> Path:
        """The tiny model, with so many layers for multi-token prediction."""
        folder = self.root / "models"
        if name in tiny_model.SEEING_MODELS:
            return seeing_model.make(name, folder, predicts_further=num_predicting > 0)
        if num_predicting:
            return prediction_model.make(name, folder, number=num_predicting)
        return tiny_model.make(name, folder)

    def checkpoint(self, name: str) -> Path:
        """The model in Megatron's format, as `mtj export --to_mcore` writes it."""
        folder = self.root / "mcore" / name
        if not folder.exists():
            done = exporting.export(model=self.model(name), to_mcore=True, output_dir=folder)
            assert done.exit_code == 0, done.message
        return folder

    def data(self, kind: str) -> Path:
        path = self.root / f"{kind}.jsonl"
        if not path.exists():
            DATA[kind](path)
        return path

    def cached(self, run: ScaledRun) -> Path:
        """The data, tokenized for this model and length as `mtj export --to_cached_dataset` does."""
        from megatron_trainer.data.command import write_cached
        from megatron_trainjob.args.parse import parse

        kind = kind_of(run)
        folder = self.root / "cached" / f"{run.model}-{kind}"
        if not folder.exists():
            given = {
                "model": str(self.model(run.model)),
                "dataset": [str(self.data(kind))],
                "to_cached_dataset": True,
                "split_dataset_ratio": 0.25,
                **{name: run.arguments[name] for name in OF_CACHED if name in run.arguments},
            }
            write_cached(parse(given, task="export").args, run.task, folder)  # type: ignore[union-attr]
        return folder

    def tokens(self) -> Path:
        path = self.root / "tokens.txt"
        path.write_text("\n".join(TOKENS))
        return path


def train(run: ScaledRun, stand_ins: StandIns, save: Path, **changes: Any) -> tiny_run.TinyRun:
    """Trains the three steps on gloo ranks; changes: other arguments."""
    settings = {**run.arguments, **_files(run, stand_ins)}
    if settings.get("task_type") == "generative_reranker":
        settings |= JUDGED
    given = {"save": str(save), "add_version": False, **settings, "log_interval": 1, **changes}
    return tiny_run.train(given, ranks=run.num_ranks, task=run.task)


def _files(run: ScaledRun, stand_ins: StandIns) -> dict[str, Any]:
    """The arguments that name files."""
    found: dict[str, Any] = {
        name: str(stand_ins.checkpoint(run.model)) for name in PLACES_OF_MODELS if name in run.stand_ins
    }
    if not found:
        found["model"] = str(stand_ins.model(run.model, num_predicting=int(run.arguments.get("mtp_num_layers", 0))))
    if "cached_dataset" in run.stand_ins:
        folder = stand_ins.cached(run)
        parts = {"cached_dataset": "train", "cached_val_dataset": "val"}
        found |= {name: [str(folder / part)] for name, part in parts.items() if name in run.stand_ins}
    else:
        found["dataset"] = [str(stand_ins.data(kind_of(run)))]
    if "val_dataset" in run.stand_ins:
        found["val_dataset"] = found["dataset"]
    if "new_special_tokens" in run.stand_ins:
        found["new_special_tokens"] = [str(stand_ins.tokens())]
    return found


def kind_of(run: ScaledRun) -> str:
    """The kind of rows that the run reads, of DATA."""
    if run.model in tiny_model.SEEING_MODELS:
        return "pairs of pictures" if run.task == "rlhf" else "pictures"
    if run.task == "rlhf":
        return "singles" if run.arguments.get("rlhf_type") == "kto" else "pairs"
    return {"pt": "texts"}.get(run.task) or str(run.arguments.get("task_type") or "conversations")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _texts(path: Path) -> None:
    _lines(path, [{"text": f"{question} {answer} ({number})"} for number, (question, answer) in _questions()])


def _labeled(path: Path) -> None:
    asked = [[{"role": "user", "content": f"{question} ({number})"}] for number, (question, _) in _questions()]
    _lines(path, [{"messages": turns, "label": number % 2} for number, turns in enumerate(asked)])


def _ranked(path: Path) -> None:
    triplets = [triplet for triplet in retrieval_truth.triplets() for _ in range(4)]
    names = {"anchor": "anchor", "positive": "positive", "negative": "negatives"}
    rows = [{names[key]: value for key, value in row.items() if key in names} for row in triplets]
    _lines(path, [{**row, "positives": [row.pop("positive")]} for row in rows])


def _triplets(path: Path) -> None:
    names = ("anchor", "positive", "negative")
    triplets = [triplet for triplet in retrieval_truth.triplets() for _ in range(4)]
    _lines(path, [{name: row[name] for name in names} for row in triplets])


@cache
def _questions() -> list[tuple[int, tuple[str, str]]]:
    return [(number, tiny_run.QUESTIONS[number % len(tiny_run.QUESTIONS)]) for number in range(ROWS)]


DATA: dict[str, Callable[[Path], object]] = {
    "conversations": lambda path: tiny_run.write_data(path, rows=ROWS),
    "texts": _texts,
    "pairs": lambda path: preference_data.write(path, ROWS),
    "singles": lambda path: preference_data.write_singles(path, ROWS),
    "seq_cls": _labeled,
    "embedding": _triplets,
    "reranker": _ranked,
    "generative_reranker": _ranked,
    "pictures": lambda path: seeing_model.write_rows(path.with_suffix(""), path, rows=ROWS),
    "pairs of pictures": lambda path: seeing_model.write_pairs(path.with_suffix(""), path, rows=ROWS),
}
