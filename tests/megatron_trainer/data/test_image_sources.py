"""Where the images of a row come from: each form gives the same image, and one that cannot be used says why."""

from __future__ import annotations

import base64
import functools
import threading
import urllib.parse
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from megatron_trainer.data.encoding.encode import Encoded
from tests.support.data import vision
from tests.support.data.image_rows import encode, encoder_of, pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return vision.write(tmp_path_factory.mktemp("models"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def server(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path == "/gone":
                self.send_error(404)
            elif self.path == "/bytes":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"no image")
            else:
                super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


ODD_NAMES = ("~x.png", " lead.png", "[x].png", "a#b.png", "a%20c.png", "日 本.png")


def forms(folder, server):
    content = (folder / "a.png").read_bytes()
    coded = base64.b64encode(content).decode()
    for name in ODD_NAMES:
        (folder / name).write_bytes(content)
    return {
        "absolute": str(folder / "a.png"),
        "file": (folder / "a.png").as_uri(),
        "http": f"{server}/a.png",
        "data URI": f"data:image/png;base64,{coded}",
        "base64": coded,
        "bytes": content,
        "HF bytes": {"bytes": content, "path": "gone.png"},
        "HF path": {"bytes": None, "path": "a.png"},
        "Anthropic": {"type": "base64", "media_type": "image/png", "data": coded},
        "base64 in lines": base64.encodebytes(content).decode(),
        "file, not escaped": f"file://{folder}/a#b.png",
        "file, relative": "file://a.png",
        "http, not escaped": f"{server}/日 本.png?für=1 2#top",
        "http, escaped": f"{server}/{urllib.parse.quote('日 本.png')}",
        **{name: name for name in ODD_NAMES},
    }


@pytest.mark.parametrize(
    "form",
    [
        *("absolute", "file", "http", "data URI", "base64", "bytes", "HF bytes", "HF path", "Anthropic"),
        *("base64 in lines", "file, not escaped", "file, relative", "http, not escaped", "http, escaped", *ODD_NAMES),
    ],
)
def test_every_form_of_an_image_is_the_same_image(model, folder, server, form):
    encoder, images = encoder_of(model)
    row = {"query": "<image>?", "response": "Yes.", "images": [forms(folder, server)[form]]}
    encoded = encode(encoder, row, folder)
    assert isinstance(encoded, Encoded), encoded
    plain = encode(encoder, {**row, "images": ["a.png"]}, folder)
    assert encoded.input_ids[0].tolist() == plain.input_ids[0].tolist()
    found, expected = (images.reader.pixels(one.media[0]).values_PD for one in (encoded, plain))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("images", ["[x].png", '{"path": "a.png"}', '["a.png"]', "['a.png']"])
def test_a_column_of_text_is_a_path_or_json(model, folder, server, images):
    forms(folder, server)
    encoder, _ = encoder_of(model)
    encoded = encode(encoder, {"query": "<image>?", "response": "Yes.", "images": images, "image": images}, folder)
    assert isinstance(encoded, Encoded), encoded
    assert [medium.size for medium in encoded.media[0]] == [(24, 40)]


@pytest.mark.parametrize("part", [{"image": "a.png"}, {"image_url": {"url": "a.png"}, "text": None}])
def test_parts_may_have_no_type_as_in_the_templates_of_qwen(model, folder, part):
    encoder, _ = encoder_of(model)
    typed = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]
    answer = {"role": "assistant", "content": "Yes."}
    found, expected = (
        encode(encoder, {"messages": [{"role": "user", "content": content}, answer]}, folder)
        for content in ([part, {"text": "?"}], typed)
    )
    assert found.input_ids[0].tolist() == expected.input_ids[0].tolist()
    assert found.media == expected.media


def rejected(model, folder, images, query="<image>?"):
    encoder, _ = encoder_of(model)
    result = encode(encoder, {"query": query, "response": "Yes.", "images": images}, folder)
    assert not isinstance(result, Encoded)
    return result


BAD = {
    "missing": (["gone.png"], "an image is not there"),
    "a folder": (["."], "an image is not there"),
    "null": ([None], "an image is neither a path, a URL nor bytes"),
    "null among others": (["a.png", None], "an image is neither a path, a URL nor bytes"),
    "a number": ([3], "an image is neither a path, a URL nor bytes"),
    "empty object": ([{}], "an image is neither a path, a URL nor bytes"),
    "empty text": ([""], "an image is neither a path, a URL nor bytes"),
    "ftp": (["ftp://host/a.png"], "an image has a URL of a kind that is not read"),
    "data URI without base64": (["data:image/png,abc"], "an image is neither a path, a URL nor bytes"),
    "no image": ([b"hello world"], "an image cannot be read"),
    "PostScript": ([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"], "an image cannot be read"),
    "a name that no file can have": (["a\0b"], "an image is not there"),
    "a very long name": (["x./" * 5000], "an image is not there"),
    "too many images": (["a.png", "b.jpg"], "images and their places do not match"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_whose_image_cannot_be_used_is_dropped_with_the_reason(model, folder, name):
    images, reason = BAD[name]
    assert rejected(model, folder, images).reason == reason


def test_an_image_that_cannot_be_read_is_named(model, folder):
    (folder / "damaged.png").write_bytes(b"damaged")
    detail = rejected(model, folder, ["a.png", "damaged.png"], "<image><image>?").detail
    assert detail.startswith(f"{folder / 'damaged.png'}: UnidentifiedImageError")
    assert rejected(model, folder, [b"damaged"]).detail.startswith("an image of 7 bytes: ")


def test_where_a_missing_image_was_looked_for_is_said(model, folder):
    detail = f"gone.png, looked for in {folder} and {Path.cwd()}"
    assert rejected(model, folder, ["gone.png"]).detail == detail
    for absolute in ("/gone.png", "file:///gone.png"):
        assert rejected(model, folder, [absolute]).detail == absolute


def test_too_few_images_for_the_tags(model, folder):
    assert rejected(model, folder, ["a.png"], "<image><image>?").reason == "images and their places do not match"


def test_the_token_of_images_in_a_text_is_no_image(model, folder):
    row = {"query": "What is <|image_pad|>?", "response": "Yes."}
    encoder, _ = encoder_of(model)
    assert encode(encoder, row, folder).reason == "images and their places do not match"


def test_a_forged_mark_is_refused(model, folder):
    for query in ("<image>\ufdd0", "<image>\ufdd00i\ufdd1"):
        assert not isinstance(rejected(model, folder, ["a.png"], query), Encoded)


def test_servers_that_have_no_image(model, folder, server):
    assert rejected(model, folder, [f"{server}/gone"]).reason == "an image cannot be fetched"
    assert rejected(model, folder, [f"{server}/bytes"]).reason == "an image cannot be read"
