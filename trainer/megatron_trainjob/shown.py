"""Sanitizes external text for display: no active control characters, and no secrets.

Used at the edges, where text leaves for a terminal, a log, a status, an event or a record: names of files, rows,
metrics and values of arguments may contain an escape sequence that clears the screen, a mark that reverses the text
direction, a line that imitates another one, or a token pasted under a mistyped name.
"""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections.abc import Mapping

HIDDEN = "(hidden)"
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (including bidirectional marks), surrogates, line and paragraph separators."""
_JOINERS = "\u200c\u200d"  # of scripts and emoji
_PASSWORD = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://)(?P<user>[^\s/@:]*):[^\s/@]+@")
_TOKEN = re.compile(r"\b(hf|ghp|gho|ghs|github_pat|glpat|sk|xoxb|xoxp)[_-][A-Za-z0-9_-]{8,}")
_NAMES = ("hub_token", "hf_token", "auth_token", "access_token", "api_key", "apikey", "password", "passwd", "secret")
_SECRET_NAME = re.compile(
    r"(^|(?<!positive)(?<!negative)[_-])(token|secret|password|passwd|passphrase|credentials?|api_?key|access_?key)$"
)
_ENVIRONMENT = re.compile(r"\.env(\[\d+\](?!\.(name|valueFrom)\b)|$)")
_SIMILARITY = 0.8


def clean(text: str, *, keeps_lines: bool = False) -> str:
    r"""The text with every active, invisible character escaped, such as \x1b or \u202e.

    keeps_lines: keeps line ends and tabs, for multi-line text.
    """
    kept = "\n\t" + _JOINERS if keeps_lines else _JOINERS
    parts = text.split("\n") if keeps_lines else [text]
    return "\n".join(part if part.isprintable() else _with_escapes(part, kept) for part in parts)


def _with_escapes(text: str, kept: str) -> str:
    return "".join(each if each in kept or not _acts(each) else _escaped(each) for each in text)


def without_secrets(text: str) -> str:
    """The text without passwords in URLs and without tokens recognizable by their form."""
    text = _PASSWORD.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", text) if "://" in text else text
    return _TOKEN.sub(rf"\1_{HIDDEN}", text)


def message(text: str) -> str:
    """Text for a log, a status or an event: multi-line, clean, without secrets."""
    return clean(without_secrets(text), keeps_lines=True)


def value(path: str, given: object) -> str:
    """The value given under this path for display: as Python prints it, hidden if it may be a secret."""
    return repr(HIDDEN) if is_secret(path) else without_secrets(repr(given))


def is_secret(path: str) -> bool:
    """Whether the value under this path may be a secret: by its name, even a mistyped one, or as a variable."""
    if _ENVIRONMENT.search(path):
        return True
    name = path.rpartition(".")[2].lower().replace("-", "_")
    return bool(_SECRET_NAME.search(name) or difflib.get_close_matches(name, _NAMES, n=1, cutoff=_SIMILARITY))


class LogFormatter(logging.Formatter):
    """Formats records clean and without secrets, with continuation lines indented so that none can imitate a record."""

    def format(self, record: logging.LogRecord) -> str:
        return message(super().format(record)).replace("\n", "\n    ")


def configure_logging(level: int | str, layout: str) -> None:
    """Sends every record to standard error, replacing previous logging setups. layout: a `logging` format."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(layout))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def record(content: object) -> object:
    """JSON content with the secrets in its texts hidden."""
    if isinstance(content, str):
        return without_secrets(content)
    if isinstance(content, Mapping):
        return {name: record(part) for name, part in content.items()}
    return [record(part) for part in content] if isinstance(content, list | tuple) else content


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _ACTING


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
