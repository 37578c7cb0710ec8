"""Finds unread keys in the turns of a row, by name, the same for all rows of a kind.

Which keys are read depends on the role of a turn (messages.py), and of two synonymous keys only the first is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megatron_trainer.data.conversation.messages import (
    ARGUMENT_KEYS,
    CALL_KEYS,
    CONTENT_KEYS,
    MASK_KEYS,
    PAIR_KEYS,
    PASSED_ON,
    ROLE_KEYS,
    ROLES,
    THOUGHT_KEYS,
    first,
    is_missing,
    parse_json,
    plain_role,
    turns_in,
)
from megatron_trainer.data.values import RowError

_PLAIN = ({"role", "content"}, {"from", "value"})
_OF_ANSWERS = frozenset({*THOUGHT_KEYS, *MASK_KEYS, *CALL_KEYS})
_OF_CALLS = frozenset({"type", "id", "index", "function", "name"})
_READ = {
    "assistant": frozenset({*_OF_ANSWERS, *PASSED_ON}),
    "tool_call": frozenset({*MASK_KEYS, *THOUGHT_KEYS}),
    **dict.fromkeys(("system", "user", "tool"), frozenset(PASSED_ON)),
}


def unread_keys(value: object) -> tuple[str, ...]:
    """The unread keys of the turns in a column, in order; empty for a column without turns."""
    try:
        turns = turns_in(value)
    except RowError:
        return ()
    unread: dict[str, None] = {}
    for turn in turns:
        is_part = isinstance(turn, Mapping) and "type" in turn and first(turn, ROLE_KEYS) is None
        if isinstance(turn, Mapping) and not is_part and not _is_plain(turn):
            unread |= dict.fromkeys(_unread(turn))
    return tuple(unread)


def _is_plain(turn: Mapping[str, object]) -> bool:
    """Whether the turn has a role and a text, and nothing else."""
    keys = turn.keys()
    return keys in _PLAIN and "call" not in str(turn["role"] if "role" in keys else turn["from"])


def _unread(turn: Mapping[str, object]) -> Iterator[str]:
    role = first(turn, ROLE_KEYS)
    canonical = ROLES.get(plain_role(role)) if isinstance(role, str) else None
    read = _read_of_pair(turn) if role is None else _read_of_turn(turn, canonical or "")
    for key, entry in turn.items():
        is_mask = key in MASK_KEYS and not entry  # zero and false are the default where nothing is trained
        if key in read or is_mask or not _has(turn, key):
            continue
        beside = key in _OF_ANSWERS and canonical != "assistant"
        yield f"{key} of a turn that is not the assistant's" if beside else str(key)
    for key in (*CALL_KEYS, *CONTENT_KEYS) if canonical in ("assistant", "tool_call") else ():
        if key in CALL_KEYS or canonical == "tool_call":
            yield from (f"{name} of a tool call" for name in _unread_of_calls(turn.get(key)))


def _read_of_turn(turn: Mapping[str, object], canonical: str) -> frozenset[str]:
    """Keys read of a turn with a role. A value that is repeated under a second name counts as read."""
    read = set(_READ.get(canonical, frozenset()))
    content = first(turn, CONTENT_KEYS)
    read |= {key for key in CONTENT_KEYS if turn.get(key) == content}
    role = first(turn, ROLE_KEYS)
    read |= {key for key in ROLE_KEYS if _means(turn.get(key), role)}
    if canonical == "tool_call" and content is None:
        read.add("tool_calls")
    return frozenset(read)


def _means(name: object, role: str) -> bool:
    known = ROLES.get(plain_role(name)) if isinstance(name, str) else None
    return known is not None and known == ROLES.get(plain_role(role))


def _read_of_pair(turn: Mapping[str, object]) -> frozenset[str]:
    """Keys read of a turn that is a question with its answer."""
    firsts = (next((key for key in keys if turn.get(key) is not None), "") for keys in PAIR_KEYS.values())
    return frozenset({*firsts, *MASK_KEYS})


def _unread_of_calls(value: object) -> Iterator[str]:
    try:
        calls = parse_json(value, "tool call") if value else ()
    except RowError:
        return
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, Mapping):
            continue
        function = call.get("function")
        parts = (call, function) if isinstance(function, Mapping) else (call,)
        arguments = next(
            ((place, key) for place, part in reversed([*enumerate(parts)]) for key in ARGUMENT_KEYS if _has(part, key)),
            None,
        )
        for place, part in enumerate(parts):
            unread = (key for key in part if key not in _OF_CALLS and (place, key) != arguments and _has(part, key))
            yield from map(str, unread)


def _has(part: Mapping[str, object], key: str) -> bool:
    entry = part.get(key)
    return not is_missing(entry) and entry not in ("", [], {})
