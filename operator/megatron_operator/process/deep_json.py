"""Decodes JSON of any depth: Python's decoder fails at about a thousand levels, where an API server does not.

One job with a podTemplate nested that deeply would otherwise end the watch of all jobs, in every replica, for as long
as the job exists. No field of a pod or a job is nested more than a few dozen levels; what is deeper is dropped.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 100
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def install() -> None:
    """Makes every `json.loads` in this process accept such text; the libraries that watch use nothing else."""
    decoder: Any = json._default_decoder  # type: ignore[attr-defined]  # the decoder that json.loads delegates to
    decode = decoder.decode

    def decode_any(text: str, *rest: Any) -> Any:  # noqa: ANN401 (any JSON value)
        try:
            return decode(text, *rest)
        except RecursionError:
            return decode(cut(text), *rest)

    decoder.decode = decode_any


def cut(text: str) -> str:
    """The JSON text with null in place of every object and list nested more than MAX_DEPTH levels."""
    kept, depth, begin = [], 0, 0
    for match in TOKEN.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += [text[begin : match.start()], "null"]
        elif token in "]}":
            if depth == MAX_DEPTH + 1:
                begin = match.end()
            depth -= 1
    return "".join([*kept, text[begin:]])
