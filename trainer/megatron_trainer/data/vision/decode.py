"""Decodes the file of an image into 8-bit RGB, upright, within a limit of pixels; only the first picture of a file.

Only decoders that run no other program and read no other file are used.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from megatron_trainer.data.values import RowError
from megatron_trainer.data.vision.files import TOO_LARGE

Image.init()
_WANTED = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "QOI")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
MAX_PIXELS = 100_000_000
"""Of the stored image, 300 MB as RGB: a small file may claim any number of pixels."""
UNREADABLE = "an image cannot be read"
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
SEVERAL = "an image is animated or has pages; the first is read"


def decode(content: bytes) -> tuple[Image.Image, str]:
    """The image as RGB, turned as its EXIF data says, and a note for the user ("" for none).

    Sixteen bits become eight by scale: other readers cut off all but the darkest values. Transparency is left out, as
    transformers does.

    Raises RowError for anything that is not a complete image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are checked here
            return _decoded(content)
    except RowError:
        raise
    except Image.DecompressionBombError as err:
        raise RowError(TOO_LARGE, str(err)) from err
    except Exception as err:
        raise RowError(UNREADABLE, f"{type(err).__name__}: {err}"[:200]) from err


def _decoded(content: bytes) -> tuple[Image.Image, str]:
    with Image.open(io.BytesIO(content), formats=FORMATS) as stored:
        width, height = stored.size
        if width * height > MAX_PIXELS:
            raise RowError(TOO_LARGE, f"{width} x {height} pixels")
        note = SEVERAL if stored.format != "MPO" and getattr(stored, "n_frames", 1) > 1 else ""
        stored.seek(0)
        stored.load()
        upright = ImageOps.exif_transpose(stored)
        return _rgb(upright), note


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise RowError("an image has a depth without a scale", f"mode {image.mode}; save it with 8 or 16 bits")
    return image.convert("RGB")
