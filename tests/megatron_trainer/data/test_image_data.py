"""Datasets with images: every way of storing and reading rows gives the same samples, with the same pixels."""

from __future__ import annotations

import base64
import io
import json
import pickle

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from transformers import AutoTokenizer

from megatron_trainer.data.cached import write_store
from megatron_trainer.data.collate import RowShape, collate
from megatron_trainer.data.loader import micro_batches
from megatron_trainer.data.ordering.sample import Sampler
from megatron_trainer.data.prepare import prepare
from megatron_trainer.data.show import lines
from megatron_trainer.data.streaming.items import StreamSampler
from megatron_trainer.data.values import Sample
from megatron_trainer.data.vision.model import image_rows_of
from megatron_trainer.failure import InvalidInput, TrainingError
from megatron_trainer.report.facts import data_facts
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families.vision import Vision
from tests.support.data import vision

NUM_ROWS = 9


def facts(images):
    return Vision(
        depth=1,
        hidden_size=8,
        width=8,
        num_heads=1,
        channels=3,
        patch_size=4,
        temporal_patch_size=2,
        merge_size=2,
        output_size=8,
        sections=(2, 3, 3),
        tensors={},
        image_token=images.tokens.image,
        video_token=images.tokens.video,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return vision.write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def rows(tmp_path):
    """Rows with one image, two, and none, and the folder of the images."""
    found = []
    for number in range(NUM_ROWS):
        names = [f"pictures/{number}-{n}.png" for n in range(number % 3)]
        for n, name in enumerate(names):
            vision.save(tmp_path / name, 8 + 5 * number, 30 - 2 * n, number)
        found.append({"query": "<image>" * len(names) + f"q{number}", "response": f"r{number}", "images": names})
    return found


@pytest.fixture
def run(model, tmp_path):
    """run(dataset=...) -> (what is prepared, the image rows, the shape of micro-batches)."""

    def run(*, save="save", max_length=2000, task="sft", **fields):
        tokenizer = AutoTokenizer.from_pretrained(model)
        args = TrainArgs(dataset_shuffle=False, **fields)
        config = json.loads((model / "config.json").read_text())
        images = image_rows_of(args, model, config, tokenizer, tmp_path / save)
        data = prepare(
            args,
            tokenizer,
            task=task,
            max_length=max_length,
            save=tmp_path / save,
            is_first_rank=True,
            images=images,
        )
        return data, RowShape(pad_id=0, vision=facts(images), images=images.reader)

    return run


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def with_bytes(rows, folder):
    """The rows as the image feature of `datasets` stores them."""
    stored = [[{"bytes": (folder / name).read_bytes(), "path": None} for name in row["images"]] for row in rows]
    return [{**row, "images": images} for row, images in zip(rows, stored, strict=True)]


def contents(batches):
    """All that the model gets of some micro-batches."""
    names = ("tokens_BT", "labels_BT", "mrope_position_ids_3BT", "pixel_values", "grid_thw")
    return [{n: None if (v := getattr(b, n)) is None else v.tolist() for n in names} for b in batches]


def all_batches(data, shape, workers=0, start=0, size=2):
    sampler = Sampler(
        num_items=len(data.train),
        micro_batch_size=size,
        data_parallel_rank=0,
        data_parallel_size=1,
        dataloader_type="single",
        num_epochs=1,
        consumed_samples=start,
    )
    return contents(micro_batches(data.train, sampler, shape=shape, num_workers=workers))


def test_every_container_gives_the_same_micro_batches(run, rows, tmp_path):
    plain = all_batches(*run(dataset=(write_jsonl(tmp_path / "rows.jsonl", rows),)))
    assert sum(len(batch["grid_thw"] or ()) for batch in plain) == 7, "the last row alone fills no micro-batch"
    held = with_bytes(rows, tmp_path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(held), tmp_path / "rows.parquet")
    feature = datasets.Features(
        {"query": datasets.Value("string"), "response": datasets.Value("string"), "images": [datasets.Image()]}
    )
    datasets.Dataset.from_list(held, features=feature).save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.parquet", "saved"):
        assert all_batches(*run(dataset=(str(tmp_path / name),))) == plain, name
        assert all_batches(*run(dataset=(str(tmp_path / name),), lazy_tokenize=True, save=f"lazy-{name}")) == plain
    for workers in ({"dataset_num_proc": 2}, {"image_cache_gib": 1.0}, {"lazy_tokenize": True}):
        assert all_batches(*run(dataset=(str(tmp_path / "rows.jsonl"),), save=str(workers), **workers)) == plain


def test_readers_ahead_and_a_resume_give_the_same_pixels(run, rows, tmp_path):
    data, shape = run(dataset=(write_jsonl(tmp_path / "rows.jsonl", rows),))
    whole = all_batches(data, shape)
    assert all_batches(data, shape, workers=2) == whole
    assert all_batches(data, shape, workers=1, start=4) == whole[2:]


def test_a_stream_gives_the_same_pixels_and_resumes(run, rows, tmp_path):
    name = write_jsonl(tmp_path / "rows.jsonl", rows)
    data, shape = run(dataset=(name,), streaming=True, train_iters=1, shuffle_buffer_size=4)
    sampler = StreamSampler(micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1, num_epochs=1)
    streamed = contents(micro_batches(data.train, sampler, shape=shape, num_workers=0))
    assert streamed == all_batches(*run(dataset=(name,)), size=1)


def test_packing_counts_the_tokens_of_images(run, rows, tmp_path):
    name = write_jsonl(tmp_path / "rows.jsonl", rows)
    plain, shape = run(dataset=(name,))
    lengths = plain.train.lengths()
    packed, _ = run(dataset=(name,), packing=True, packing_length=2 * int(lengths.max()))
    assert len(packed.train) < len(plain.train)
    for row in packed.train:
        batch = collate([row], shape)
        assert batch.tokens_BT.shape[1] <= 2 * lengths.max()
        assert (batch.tokens_BT == shape.vision.image_token).sum() * 4 == len(
            batch.pixel_values if batch.pixel_values is not None else ()
        )
        if batch.mrope_position_ids_3BT is not None:
            starts = batch.mrope_position_ids_3BT[:, 0, batch.cu_seqlens[:-1].long()]
            assert not starts.any(), "positions restart"


def test_tokenized_data_takes_its_images_along(run, rows, tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(with_bytes(rows, tmp_path)), tmp_path / "rows.parquet")
    data, shape = run(dataset=(str(tmp_path / "rows.parquet"),))
    write_store(data.train, tmp_path / "made" / "train")
    again, _ = run(cached_dataset=(str(tmp_path / "made"),))
    assert all_batches(again, shape) == all_batches(data, shape)
    store = pickle.loads(pickle.dumps(data.train)).stores[0]
    assert [len(store[row].media) for row in range(NUM_ROWS)] == [0, 1, 2] * 3


def test_a_saved_dataset_has_its_images_in_its_own_folder(run, tmp_path):
    row = {"query": "<image>?", "response": "Yes.", "images": ["a.png"]}
    for name, width in (("first", 16), ("second", 24)):
        datasets.Dataset.from_list([row]).save_to_disk(str(tmp_path / name))
        vision.save(tmp_path / name / "a.png", width, 16)
    data, _ = run(dataset=(str(tmp_path / "first"), str(tmp_path / "second")))
    assert [sample.media[0].size[1] for sample in data.train] == [16, 24]


def test_equal_rows_in_another_folder_have_the_images_of_that_folder(run, tmp_path, monkeypatch):
    row = {"query": "<image>?", "response": "Yes.", "images": ["a.png"]}
    for name, width in (("first", 16), ("second", 24)):
        vision.save(tmp_path / name / "a.png", width, 16)
        write_jsonl(tmp_path / name / "rows.jsonl", [row])
    write_jsonl(tmp_path / "rows.jsonl", [row])

    def widths(*files):
        data, _ = run(dataset=tuple(str(tmp_path / file) for file in files))
        return [sample.media[0].size[1] for sample in data.train]

    assert widths("first/rows.jsonl", "second/rows.jsonl") == [16, 24]
    for name, width in (("first", 16), ("second", 24)):
        monkeypatch.chdir(tmp_path / name)
        assert widths("rows.jsonl") == [width], "where there is no image beside the rows"
    data, _ = run(dataset=(str(tmp_path / "rows.jsonl"),), image_root=str(tmp_path / "first"))
    assert data.train[0].media[0].size[1] == 16


def test_equal_bytes_are_stored_once(run, rows, tmp_path):
    held = with_bytes(rows[1:2], tmp_path) * 5
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(held), tmp_path / "rows.parquet")
    data, _ = run(dataset=(str(tmp_path / "rows.parquet"),))
    [stored] = data.train.stores
    assert (stored.directory / "media.bin").stat().st_size == len(held[0]["images"][0]["bytes"])


def test_dropped_rows_are_counted_by_reason_and_strict_stops_at_the_first(run, rows, tmp_path):
    (tmp_path / "pictures" / "4-0.png").write_bytes(b"damaged")
    (tmp_path / "pictures" / "7-0.png").unlink()
    name = write_jsonl(tmp_path / "rows.jsonl", rows)
    [source] = run(dataset=(name,))[0].report.datasets
    assert (source.rows_read, source.rows_kept) == (9, 7)
    assert {drop.reason: drop.rows for drop in source.dropped} == {
        "an image cannot be read": 1,
        "an image is not there": 1,
    }
    with pytest.raises(InvalidInput, match=r"rows.jsonl:5"):
        run(dataset=(name,), strict=True, save="strict")


@pytest.mark.parametrize("change", ["gone", "another size"])
def test_an_image_that_changes_after_its_row_was_tokenized_ends_the_run_with_its_name(run, rows, tmp_path, change):
    data, shape = run(dataset=(write_jsonl(tmp_path / "rows.jsonl", rows),))
    if change == "gone":
        (tmp_path / "pictures" / "1-0.png").unlink()
    else:
        vision.save(tmp_path / "pictures" / "1-0.png", 50, 50)
    with pytest.raises(TrainingError, match=r"1-0\.png"):
        collate([data.train[1]], shape)


def test_a_sample_with_images_needs_a_model_that_sees(run, rows, tmp_path):
    data, _ = run(dataset=(write_jsonl(tmp_path / "rows.jsonl", rows),))
    sample = data.train[1]
    assert isinstance(sample, Sample)
    with pytest.raises(ValueError, match="no vision tower"):
        collate([sample], RowShape(pad_id=0))


def test_ranks_that_need_no_pixels_have_positions_alone(run, rows, tmp_path):
    from dataclasses import replace

    data, shape = run(dataset=(write_jsonl(tmp_path / "rows.jsonl", rows),))
    items = [data.train[1], data.train[2]]
    seen, unseen = collate(items, shape), collate(items, replace(shape, reads_pixels=False))
    assert unseen.pixel_values is None
    assert np.array_equal(seen.mrope_position_ids_3BT, unseen.mrope_position_ids_3BT)


def test_the_report_has_the_sizes_of_images_and_pictures_of_the_first(run, rows, tmp_path):
    data, _ = run(dataset=(write_jsonl(tmp_path / "rows.jsonl", rows),))
    report = data.report
    sizes = [(8 + 5 * number, 30 - 2 * n) for number in range(NUM_ROWS) for n in range(number % 3)]
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    images = report.images
    assert (images.images, images.videos) == (9, 0)
    assert (images.smallest, images.largest) == (by_area[0], by_area[-1])
    tokens = sum(
        int(np.prod(m.grid)) // 4 for item in run(dataset=(str(tmp_path / "rows.jsonl"),))[0].train for m in item.media
    )
    assert images.tokens == tokens
    facts_ = dict(data_facts(report.to_json()))
    assert facts_["Images"].startswith("9, 13 x 30 to 48 x 28 pixels") or facts_["Images"].startswith("9, ")
    shown = "".join(text for text, _ in report.examples[2])
    assert shown.count("[image 18 x ") == 2
    assert "<|image_pad|>" not in shown
    assert [len(uris) for uris in report.thumbnails] == [0, 1, 2]
    content = base64.b64decode(report.thumbnails[1][0].partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (13, 30)


def test_a_sequence_is_shown_with_its_images_token_by_token(run, rows, tmp_path, model):
    data, shape = run(dataset=(write_jsonl(tmp_path / "rows.jsonl", rows),))
    tokens = image_rows_of(TrainArgs(), model, vision.config(), vision.tokenizer(), None).tokens
    sample = data.train[2]
    listed = list(lines(sample, vision.tokenizer(), in_color=False, shows_tokens=True, vision=tokens))
    count = sum(tokens.num_tokens(medium) for medium in sample.media)
    assert len(listed) == sample.length - count + 2
    [text] = lines(sample, vision.tokenizer(), in_color=False, shows_tokens=False, vision=tokens)
    assert text.count("[image 18 x 30") == 1


def test_split_turns_gives_each_answer_the_images_before_it(run, rows, tmp_path):
    turns = [
        *({"role": "user", "content": "<image>A?"}, {"role": "assistant", "content": "a"}),
        *({"role": "user", "content": "<image>B?"}, {"role": "assistant", "content": "b"}),
    ]
    name = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns, "images": rows[2]["images"]}])
    data, _ = run(dataset=(name,), split_turns=True)
    assert [len(sample.media) for sample in data.train] == [1, 2]
