"""Columns that hold a text or turns: a list of turns, a single turn, or the JSON text of either, as tables write it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_trainer.data.conversation.columns import CONTEXT, LATE_QUERY, QUERY, RESPONSE, Row
from megatron_trainer.data.conversation.messages import (
    CALL_KEYS,
    CONTENT_KEYS,
    ROLE_KEYS,
    ROLES,
    first,
    parse_json,
    parse_messages,
    plain_role,
    text_of,
)
from megatron_trainer.data.values import Message, RowError

_ASKED = frozenset({*QUERY, *LATE_QUERY})
_JUDGED = frozenset({"chosen", "rejected", "rejected_response"})
_HOLDERS = frozenset({*_ASKED, *_JUDGED, *RESPONSE})
"""Columns that may hold turns in place of a text."""
_BEGINS = re.compile(r"\s*\[?\s*\{")
_SPOKEN = re.compile(r"""["'](?:role|from)["']\s*:\s*["']([\w -]+)["']""")


def unpacked(fields: Row) -> tuple[Row, tuple[str, ...]]:
    """The fields with lists of turns in place of single turns and of texts that are turns, and notes about the latter.

    Raises RowError for a text that begins and ends like turns and is damaged.
    """
    found: dict[str, object] = {}
    notes: list[str] = []
    for name, value in fields.items():
        if name not in _HOLDERS:
            continue
        if _is_turn(value):
            found[name] = [value]
        elif isinstance(value, str) and _BEGINS.match(value) and (turns := _turns_of_text(name, value)):
            if name in _ASKED or name in _JUDGED or _speaker(turns[0]) == "assistant":
                found[name] = turns
                notes.append(f"the text in {name} is the JSON of turns, and read as turns")
            else:
                notes.append(
                    f"the text in {name} is the JSON of turns, and trained as text; columns: {{{name}: messages}}"
                )
    return ({**fields, **found}, tuple(notes)) if found or notes else (fields, ())


def _turns_of_text(name: str, text: str) -> list[object] | None:
    """The turns whose JSON text this is; None for any other text."""
    spoken = _SPOKEN.search(text)
    if spoken is None or plain_role(spoken[1]) not in ROLES:  # cheap, where answers are JSON of another kind or code
        return None
    try:
        value = parse_json(text, name)
    except RowError:
        is_damaged = text.lstrip().startswith("[") and text.rstrip().endswith("]")
        if is_damaged and name in (*_JUDGED, "prompt", "completion"):
            raise
        return None
    turns = value if isinstance(value, list) else [value]
    return turns if turns and all(map(_is_turn, turns)) else None


def _is_turn(value: object) -> bool:
    """Whether this has a known role and something said; objects with a `from` of another meaning are none."""
    return (
        isinstance(value, Mapping)
        and _speaker(value) != ""
        and any(key in value for key in (*CONTENT_KEYS, *CALL_KEYS))
    )


def _speaker(turn: object) -> str:
    """The canonical role of a turn, "" if it has none."""
    role = first(turn, ROLE_KEYS) if isinstance(turn, Mapping) else None
    found = ROLES.get(plain_role(role), "") if isinstance(role, str) else ""
    return "assistant" if found == "tool_call" else found


def as_turns(value: object) -> tuple[Message, ...]:
    """The turns in a column, empty if it holds a text."""
    is_list = (
        isinstance(value, list) and value and all(isinstance(turn, Mapping) and "type" not in turn for turn in value)
    )
    return parse_messages(value) if is_list else ()


def as_prompt(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns of a prompt: answers in it are not trained unless they say otherwise (as in TRL)."""
    return tuple(
        replace(turn, loss=False) if turn.role == "assistant" and turn.loss is None else turn for turn in turns
    )


def as_question(value: object) -> tuple[Message, ...]:
    """The turns of a question, a single one if it is a text; none for an empty one."""
    if value in (None, "", []):
        return ()
    return as_turns(value) or (Message(role="user", content=single(value)),)


def single(value: object) -> str:
    """A question; a list of several texts is not one.

    Raises RowError for such a list.
    """
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        if len(value) != 1:
            raise RowError("a column holds a list", f"the question is {len(value)} texts; use one in each row")
        return str(value[0])
    return text_of(value, "query")


def query(row: Row) -> object:
    """The question: its column and its context."""
    question = pick(row, QUERY, "query")
    if question is None:
        return late_query(row)
    if as_turns(question) or not any(name in row for name in CONTEXT):
        return question
    beside = [row[name] for name in CONTEXT if name in row]
    return "\n".join(text for text in map(single, [question, *beside]) if text)


def late_query(row: Row) -> object:
    """The question of a row in a column that often means something else: `source` beside a mere text is its origin."""
    if "input" in row:
        return row["input"]
    is_pair = any(name in row for name in RESPONSE)
    return row["source"] if is_pair and "source" in row else None


def history(value: object) -> tuple[Message, ...]:
    """Earlier rounds: pairs of a question and its answer, or turns."""
    if not value:
        return ()
    rounds = parse_json(value, "history")
    if isinstance(rounds, list) and all(isinstance(turn, Mapping) for turn in rounds):
        return parse_messages(rounds)
    if not isinstance(rounds, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in rounds):
        raise RowError("history is not a list of [query, response] pairs", "nor of turns")
    if any(part is None for pair in rounds for part in pair):
        raise RowError("history has an empty round")
    roles = ("user", "assistant")
    return tuple(
        Message(role=role, content=text_of(text, "history"))
        for pair in rounds
        for role, text in zip(roles, pair, strict=True)
    )


def pick(row: Row, names: Sequence[str], key: str) -> object:
    """The value of the column for `key`. The key's own name takes precedence over its aliases."""
    if key in row:
        return row[key]
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise RowError(f"several columns could be the {key}", f"{', '.join(found)}; name one with columns")
    return row[found[0]] if found else None
