"""`$` and backquotes that a shell passes on as they are: between single quotes, behind a backslash, from a file.

Inside a word they are kept as private characters, so that whoever looks for what is left to a shell does not find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT = str.maketrans({"$": "\ue024", "`": "\ue060"})
PLAIN = str.maketrans({"\ue024": "$", "\ue060": "`"})


def kept(text: str) -> str:
    """The text in which nothing is left to a shell."""
    return text.translate(KEPT)


def plain(text: str) -> str:
    """The text as a program receives it."""
    return text.translate(PLAIN)


def plain_value(value: Any) -> Any:  # noqa: ANN401 (a value of any argument)
    """The same for each text in a value."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain_value(name): plain_value(each) for name, each in value.items()}
    return type(value)(map(plain_value, value)) if isinstance(value, list | tuple) else value


def kept_value(value: Any) -> Any:  # noqa: ANN401 (a value of any argument)
    """A value of a file that no shell reads."""
    if isinstance(value, str):
        return kept(value)
    if isinstance(value, Mapping):
        return {name: kept_value(each) for name, each in value.items()}
    return [kept_value(each) for each in value] if isinstance(value, list) else value
