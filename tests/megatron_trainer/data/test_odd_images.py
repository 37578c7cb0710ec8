"""Odd image files: each is read as people see it, or its row is dropped with a reason; never is a run ended by one."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from megatron_trainer.data.values import RowError
from megatron_trainer.data.vision.decode import SEVERAL, decode
from tests.support.data import vision


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def as_transformers_sees(content):
    """The image as transformers loads it."""
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(vision.picture(20, 10), "JPEG", exif=exif)


PALETTE = vision.picture(16, 8).convert("P")
LIKE_TRANSFORMERS = {
    "CMYK": encoded(vision.picture(16, 8).convert("CMYK"), "JPEG"),
    "gray": encoded(vision.picture(16, 8).convert("L")),
    "gray with alpha": encoded(vision.picture(16, 8).convert("LA")),
    "bits": encoded(vision.picture(16, 8).convert("1")),
    "transparent": encoded(vision.picture(16, 8).convert("RGBA")),
    "palette": encoded(PALETTE),
    "palette with a transparent color": encoded(PALETTE, transparency=3),
    "palette with alpha": encoded(PALETTE, transparency=bytes(range(256))),
    "turned by EXIF": turned(),
    "1 x 1": encoded(Image.new("RGB", (1, 1), "red")),
    "YCbCr TIFF": encoded(vision.picture(16, 8), "TIFF"),
    "webp": encoded(vision.picture(16, 8), "WEBP"),
    "bmp": encoded(vision.picture(16, 8), "BMP"),
    "jpeg 2000": encoded(vision.picture(16, 8), "JPEG2000"),
}


@pytest.mark.parametrize("name", LIKE_TRANSFORMERS)
def test_an_image_is_read_as_transformers_reads_it(name):
    image, note = decode(LIKE_TRANSFORMERS[name])
    assert (image.mode, note) == ("RGB", "")
    assert np.array_equal(np.asarray(image), as_transformers_sees(LIKE_TRANSFORMERS[name]))


def test_an_image_that_exif_turns_is_upright():
    assert decode(turned())[0].size == (10, 20)


def test_sixteen_bits_are_scaled_to_eight_and_not_cut_off():
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    image, _ = decode(encoded(Image.fromarray(deep)))
    assert np.array_equal(np.asarray(image)[:, :, 0], deep >> 8)


def test_the_first_picture_of_an_animation_is_read_and_reported():
    frames = [vision.picture(16, 8, seed).convert("P") for seed in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image, note = decode(content)
    assert note == SEVERAL
    assert np.array_equal(np.asarray(image), as_transformers_sees(content))


def claims(width, height):
    """A PNG of a few bytes that claims any size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = encoded(vision.picture(64, 48), "JPEG")
UNUSABLE = {
    "a bomb": (claims(20_000, 8_000), "an image is too large"),
    "a larger bomb": (claims(100_000, 100_000), "an image is too large"),
    "no pixels": (claims(0, 5), "an image cannot be read"),
    "cut off": (JPEG[: len(JPEG) // 2], "an image cannot be read"),
    "PNG cut off": (encoded(vision.picture(64, 48))[:-300], "an image cannot be read"),
    "empty": (b"", "an image cannot be read"),
    "text": (b"<html>404</html>", "an image cannot be read"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an image cannot be read"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "an image cannot be read"),
    "floating point": (
        encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "an image has a depth without a scale",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_usable_image_is_a_reason(name):
    content, reason = UNUSABLE[name]
    with pytest.raises(RowError) as caught:
        decode(content)
    assert caught.value.reason == reason


def mode_or_reason(content):
    try:
        return decode(content)[0].mode
    except RowError as err:
        return err.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_files_are_read_or_refused(kind):
    whole = encoded(vision.picture(24, 16), kind)
    dice = random.Random(7)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        content = bytes(damaged[: dice.randint(1, len(damaged))] if dice.random() < 0.3 else damaged)
        assert mode_or_reason(content).startswith(("RGB", "an image"))
