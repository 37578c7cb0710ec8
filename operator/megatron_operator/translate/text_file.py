"""Reads text files of other machines: UTF-8, else GB 18030, in which Chinese editors may save a script."""

from __future__ import annotations

from pathlib import Path

OTHER = "gb18030"


def read_text(path: Path) -> tuple[str, bool]:
    """(the text, whether it is no UTF-8). Raises OSError, also for what is neither."""
    raw = path.read_bytes()
    for encoding in ("utf-8-sig", OTHER):
        try:
            return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n"), encoding == OTHER
        except UnicodeDecodeError:
            continue
    raise OSError(f"{path} is no text in UTF-8; save it as one")
