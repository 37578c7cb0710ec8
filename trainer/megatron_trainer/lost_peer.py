"""How a rank that merely lost another is distinguished from the one that failed: by what gloo, NCCL and the store say.

A rank that ends takes its connections along, so that others fail within milliseconds, and may be the first whose end is
seen. What they report is a consequence: it is neither a wrong checkpoint nor a full disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_WORDS = re.compile(
    r"connection closed by peer|connection reset by peer|broken pipe|remote process exited|ncclRemoteError|"
    r"NCCL communicator was aborted|failed to recv, got 0 bytes|socket (was )?closed",
    re.IGNORECASE,
)


def is_said(message: str) -> bool:
    """Whether a message of a collective says that another rank is gone."""
    return _WORDS.search(message) is not None


def is_cause(error: BaseException) -> bool:
    """Whether the error, or one that led to it, is a collective whose peer is gone; errors of files are none."""
    return any(isinstance(each, RuntimeError) and is_said(str(each)) for each in with_causes(error))


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it, each once."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
