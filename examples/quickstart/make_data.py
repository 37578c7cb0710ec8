"""Writes a small instruction data set about the Python standard library, taken from its own docstrings.

Each row asks what one function, class or method does; the answer is the first paragraph of its docstring. The
held-out rows are about other objects than the rows trained on. The same Python writes the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from place import data_directory

MODULES = Path(__file__).with_name("modules.txt").read_text().split()
QUESTIONS = (
    "What does `{name}` do in Python?",
    "Explain `{name}` from the Python standard library.",
    "In Python, what is `{name}` for?",
    "What does `{call}` do?",
)
WORDS = range(5, 31)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One documented object: dotted name, call with parameters, first paragraph of its docstring."""

    name: str
    call: str
    summary: str


def main() -> None:
    """Writes train.jsonl and validation.jsonl."""
    parser = argparse.ArgumentParser(description="Write the quickstart's data set.")
    parser.add_argument("--output", type=Path, default=data_directory(), help="folder for the two files")
    parser.add_argument("--train", type=int, default=400, help="rows to train on")
    parser.add_argument("--validation", type=int, default=48, help="held-out rows")
    args = parser.parse_args()
    entries = sorted(unique_entries(), key=order)
    if len(entries) < args.train + args.validation:
        raise SystemExit(f"the standard library has only {len(entries)} suitable docstrings; ask for fewer rows")
    held_out, rest = entries[: args.validation], entries[args.validation :]
    args.output.mkdir(parents=True, exist_ok=True)
    write_rows(args.output / "validation.jsonl", held_out)
    write_rows(args.output / "train.jsonl", rest[: args.train])


def write_rows(path: Path, entries: list[Entry]) -> None:
    """One JSON object a line, in the `messages` form."""
    path.write_text("".join(json.dumps({"messages": messages(entry)}) + "\n" for entry in entries))
    print(f"{len(entries)} rows written: {path}")


def messages(entry: Entry) -> list[dict[str, str]]:
    """Question and answer; the phrasing follows from the name, so it is the same in every run."""
    question = QUESTIONS[int(order(entry)[:8], 16) % len(QUESTIONS)]
    return [
        {"role": "user", "content": question.format(name=entry.name, call=entry.call)},
        {"role": "assistant", "content": entry.summary},
    ]


def order(entry: Entry) -> str:
    """Sort key that mixes the modules and does not depend on what else the library holds."""
    return hashlib.sha256(entry.name.encode()).hexdigest()


def unique_entries() -> Iterator[Entry]:
    """All usable entries; of several with the same text (aliases, overrides) the one with the first name."""
    seen: set[str] = set()
    for entry in sorted((found for module in MODULES for found in entries_of(module)), key=lambda e: e.name):
        if entry.summary not in seen:
            seen.add(entry.summary)
            yield entry


def entries_of(module_name: str) -> Iterator[Entry]:
    """Public functions and classes of a module, and the public methods of those classes."""
    for name, value in public_members(importlib.import_module(module_name)):
        yield from entry_of(f"{module_name}.{name}", value)
        if inspect.isclass(value):
            for method_name, method in public_members(value):
                yield from entry_of(f"{module_name}.{name}.{method_name}", method)


def public_members(owner: object) -> list[tuple[str, object]]:
    """Name and value of what the owner itself defines (or lists in __all__), in the order of the names."""
    members = {name: value for name, value in vars(owner).items() if is_documented(name, value)}
    listed = getattr(owner, "__all__", members)
    return [(name, members[name]) for name in sorted(members.keys() & set(listed))]


def is_documented(name: str, value: object) -> bool:
    """Whether the object is public, can be called and has a docstring of its own."""
    return not name.startswith("_") and callable(value) and isinstance(value.__doc__, str)


def entry_of(name: str, value: object) -> Iterator[Entry]:
    """The entry, or nothing when the docstring is no short sentence or the parameters cannot be shown."""
    summary = first_paragraph(value.__doc__ or "")
    parameters = shown_parameters(value)
    if summary is not None and parameters is not None:
        yield Entry(name=name, call=name + parameters, summary=summary)


def first_paragraph(docstring: str) -> str | None:
    """The first paragraph on one line, or None when it is no plain sentence of a fitting length."""
    text = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    is_sentence = text[:1].isupper() and text.endswith(".") and text.isascii()
    is_plain = not any(mark in text for mark in ("->", ">>>", "::", ":`", "__"))
    return text if is_sentence and is_plain and len(text.split()) in WORDS else None


def shown_parameters(value: object) -> str | None:
    """For example "(text, width=70)"; None when they are unknown, very long or show a memory address."""
    try:
        text = str(inspect.signature(value)) if callable(value) else ""
    except (ValueError, TypeError):
        return None
    return text if len(text) <= 60 and "<" not in text and ":" not in text else None


if __name__ == "__main__":
    main()
