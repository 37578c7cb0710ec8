"""Opens the files of images: paths, URLs, data URIs, base64 text and bytes, within limits of size and time.

A row may name any image; if it cannot be opened, RowError drops and counts the row.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_trainer.data.values import MediumFile, RowError
from megatron_trainjob import input_file

MAX_BYTES = 64 * 2**20
"""Maximum size of the file of an image, as of a row."""
FETCH_TIMEOUT_S = 20.0
FETCH_TRIES = 3
CHUNK_BYTES = 2**18
NOT_FOUND, NOT_FETCHED, TOO_LARGE = "an image is not there", "an image cannot be fetched", "an image is too large"
NO_IMAGE = "an image is neither a path, a URL nor bytes"
_KEYS = ("bytes", "url", "image_url", "image", "source", "path", "base64", "data", "b64_json")
"""Keys of an object that hold an image, in order of precedence: a file's bytes before the path it once had."""
FILE_URL = "file:"
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of a server that may be gone at the next try."""
_SENT_AS_THEY_ARE = "/%:=&?~+!$,;'@()*[]"
_WEB = urllib.request.build_opener()
_WEB.addheaders = [("User-Agent", "megatron-trainer"), ("Accept", "image/*,*/*;q=0.5")]


def open_image(value: object, folders: Sequence[Path]) -> MediumFile:
    """The file of an image, given in any form that rows use.

    folders: where relative paths are looked up, in order.

    Raises RowError when it cannot be opened.
    """
    if isinstance(value, Mapping):
        return _of_object(value, folders)
    if isinstance(value, bytes | bytearray):
        return _sized(bytes(value))
    if not isinstance(value, str) or not value.strip():
        raise RowError(NO_IMAGE, _shown(value))
    text = value.strip()
    scheme = text[:8].lower()
    if scheme.startswith("data:"):
        return _of_data_uri(text)
    if scheme.startswith(("http://", "https://")):
        return fetched(text)
    if "://" in text[:12] and not scheme.startswith(FILE_URL):
        raise RowError("an image has a URL of a kind that is not read", f"{_shown(text)}; give http, https or file")
    return _of_text(value, folders)


def existing(text: str, folders: Sequence[Path]) -> Path | None:
    """The first place of a path or a file:// URL at which something is; None for none.

    folders: where relative paths are looked up, in order. Raises OSError, ValueError or RuntimeError for a name that
    nothing can have.
    """
    return next((place for place in _places(text, folders) if place.exists()), None)


def _places(text: str, folders: Sequence[Path]) -> Iterator[Path]:
    """Each place that may be meant. A name counts as it is written first: many programs put file:// before a path
    without escaping it, and a file's name may begin with ~ or a blank.
    """
    names = [text, text.strip()]
    if names[1].lower().startswith(FILE_URL):
        plain = names[1][len(FILE_URL) :].removeprefix("//")
        names = [plain, urllib.request.url2pathname(urllib.parse.urlsplit(names[1]).path)]
    for name in dict.fromkeys(names):
        yield from ((folder / name).absolute() for folder in folders or (Path("/"),))
        if name.startswith("~"):
            yield Path(name).expanduser()


def read(source: MediumFile) -> bytes:
    """The bytes of a file. Raises RowError when it no longer exists."""
    if isinstance(source, bytes):
        return source
    try:
        return input_file.read_bytes(Path(source), most_bytes=MAX_BYTES)
    except OSError as err:
        raise RowError(NOT_FOUND, f"{source}: {err.strerror or err}") from err
    except ValueError as err:
        raise RowError(TOO_LARGE, f"{source}: {err}") from err


def fetched(url: str) -> bytes:
    """The content of a URL; retries when the server or the connection fails. Raises RowError."""
    for number in range(1, FETCH_TRIES + 1):
        try:
            return _fetch(url)
        except urllib.error.HTTPError as err:
            failure = f"{_shown(url)}: HTTP {err.code}"
            if err.code not in _PASSING:
                break
        except (OSError, http.client.HTTPException, ValueError) as err:
            failure = f"{_shown(url)}: {err}"
        if number < FETCH_TRIES:
            time.sleep(number)
    raise RowError(NOT_FETCHED, failure)


def _fetch(url: str) -> bytes:
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    parts: list[bytes] = []
    size = 0
    with _WEB.open(_escaped(url), timeout=FETCH_TIMEOUT_S) as answer:
        if not answer.geturl().lower().startswith(("http://", "https://")):
            raise RowError(NOT_FETCHED, f"{_shown(url)}: it leads to {_shown(answer.geturl())}")
        while part := answer.read(CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                raise RowError(TOO_LARGE, f"{_shown(url)}: more than {MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {FETCH_TIMEOUT_S:.0f} s")
    return b"".join(parts)


def _escaped(url: str) -> str:
    """The URL as it is sent: people write blanks and letters of all alphabets, as browsers show them."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (urllib.parse.quote(part, safe=_SENT_AS_THEY_ARE) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _of_object(value: Mapping[str, object], folders: Sequence[Path]) -> MediumFile:
    found = next((value[key] for key in _KEYS if value.get(key) not in (None, "", b"")), None)
    if found is None:
        raise RowError(NO_IMAGE, f"an object with {', '.join(map(str, value)) or 'nothing'}")
    return open_image(found, folders)


def _of_data_uri(text: str) -> bytes:
    head, _, content = text.partition(",")
    if not head.lower().endswith(";base64"):
        raise RowError(NO_IMAGE, f"a data URI without base64: {_shown(head)}")
    try:
        return _sized(base64.b64decode(urllib.parse.unquote(content)))
    except (binascii.Error, ValueError) as err:
        raise RowError(NO_IMAGE, f"a data URI that is not base64: {err}") from err


def _of_text(text: str, folders: Sequence[Path]) -> MediumFile:
    """A path; text that is no path of a file but all base64 is the file itself."""
    try:
        return _found(text, folders)
    except RowError:
        coded = "".join(text.split())  # encoders break it into lines
        if not _BASE64.fullmatch(coded):
            raise
        try:
            return _sized(
                base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_" if {*"-_"} & {*coded} else None)
            )
        except (binascii.Error, ValueError) as err:
            raise RowError(NO_IMAGE, f"neither a file nor base64: {_shown(text)}") from err


def _found(text: str, folders: Sequence[Path]) -> str:
    """The absolute path of an existing file."""
    try:
        if (path := existing(text, folders)) is not None:
            input_file.check(path)
            if path.stat().st_size > MAX_BYTES:
                raise RowError(TOO_LARGE, f"{path}: more than {MAX_BYTES} bytes")
            return str(path)
    except (OSError, ValueError, RuntimeError) as err:  # also names that no file can have
        raise RowError(NOT_FOUND, f"{_shown(text)}: {err}") from err
    raise RowError(NOT_FOUND, f"{_shown(text)}{looked_in(text, folders)}")


def looked_in(text: str, folders: Sequence[Path]) -> str:
    """Where a relative path was looked up, for the end of a message; "" for an absolute one."""
    is_absolute = text.strip().lower().startswith(("/", "~", FILE_URL))
    return "" if is_absolute or not folders else f", looked for in {' and '.join(map(str, folders))}"


def _sized(content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise RowError(TOO_LARGE, f"{len(content)} bytes")
    return content


def _shown(value: object) -> str:
    return str(value)[:120] if isinstance(value, str) else f"it is of type {type(value).__name__}"
