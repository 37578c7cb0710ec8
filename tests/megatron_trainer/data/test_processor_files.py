"""The image processor in a model's folder: sizes as it has them, in any form of its file, or the reason why not."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from transformers import AutoImageProcessor, AutoTokenizer

from megatron_trainer.data.values import RowError
from megatron_trainer.data.vision.form import PatchForm
from megatron_trainer.data.vision.model import image_rows_of
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data import vision

SIZES = ((1, 1), (1, 3), (3, 200), (7, 7), (24, 40), (65, 63), (640, 5), (300, 400), (199, 1))


def changed(folder, kind="qwen2_5_vl", **changes):
    """The folder of a tiny model with these changes of its image processor's file."""
    path = vision.write(folder, kind) / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def processor_of(folder, kind="qwen2_5_vl", **changes):
    return AutoImageProcessor.from_pretrained(changed(folder, kind, **changes), backend="pil")


def images_of(folder):
    config = json.loads((folder / "config.json").read_text())
    return image_rows_of(TrainArgs(), folder, config, AutoTokenizer.from_pretrained(folder), None)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "glm4v"])
def test_an_image_has_the_size_that_the_processor_gives_it(tmp_path, kind):
    processor = processor_of(tmp_path, kind)
    form = PatchForm(processor=processor)
    for size in SIZES:
        blank = np.zeros((*size, 3), np.uint8)
        made = processor(images=[blank], input_data_format="channels_last", return_tensors="np")
        assert form.grid(size) == tuple(made["image_grid_thw"][0].tolist()), size
    with pytest.raises(RowError, match="aspect ratio"):
        form.grid((201, 1))


def test_images_that_are_not_resized_have_their_own_size(tmp_path):
    form = PatchForm(processor=processor_of(tmp_path, do_resize=False))
    assert form.grid((24, 40)) == (1, 6, 10)
    with pytest.raises(RowError, match="no multiples of 8"):
        form.grid((24, 41))


def test_measuring_an_image_makes_no_pixels(tmp_path):
    """Photographs, or bounds of a billion pixels, would otherwise need the memory and the time of a resized image."""
    size = {"shortest_edge": 10**9, "longest_edge": 2 * 10**9}
    form = PatchForm(processor=processor_of(tmp_path, size=size))
    tracemalloc.start()
    _, rows, columns = form.grid((3000, 4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows * columns * 16 >= 10**9
    assert peak < 10**6


def test_bounds_may_have_the_names_of_the_arguments(tmp_path):
    """As in files of some versions of transformers 4."""
    named, plain = {"min_pixels": 64, "max_pixels": 2048}, {"shortest_edge": 64, "longest_edge": 2048}
    for number, changes in enumerate(({"size": plain}, {"size": named}, {"size": named, **named})):
        images = images_of(changed(tmp_path / str(number), **changes))
        medium, _ = images.reader.measure(str(vision.save(tmp_path / "a.png", 400, 300)))
        assert medium.grid == (1, 8, 12)
        assert (images.settings.video["least"], images.settings.video["most"]) == (64, 2048)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": {"height": 100, "width": 100}}, "instead of shortest_edge and longest_edge, in pixels"),
        ({"size": {"shortest_edge": 448}}, "instead of shortest_edge and longest_edge, in pixels"),
        ({"patch_size": 8}, "its image processor has patch_size 8, its tower 4; take the model's own files"),
        ({"merge_size": 1}, "its image processor has merge_size 1, its tower 2"),
        ({"image_processor_type": "CLIPImageProcessor"}, "its image processor is CLIPImageProcessor"),
    ],
    ids=["square", "one bound", "patch_size", "merge_size", "another"],
)
def test_a_processor_that_does_not_fit_is_named(tmp_path, changes, said):
    with pytest.raises(InvalidInput, match=said):
        images_of(changed(tmp_path, **changes))
