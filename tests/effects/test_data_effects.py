"""Effects of the arguments about data on what a run would train on: parsed as a user gives them, then prepared.

Each test changes one argument of a preparation that is otherwise the same. What rows say: test_template_effects.py.
"""

import datasets
import pytest

from megatron_trainer.data.cached import write_store
from megatron_trainer.data.collate import collate
from megatron_trainer.data.command import write_cached
from megatron_trainer.data.settings import row_shape
from megatron_trainer.data.storage.lazy import LazyStore
from megatron_trainer.data.streaming.items import StreamSampler, micro_batches_of
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.args.parse import parse
from tests.effects.registry import effect
from tests.support.data.answers import TOKENIZER, answers
from tests.support.models import tiny_model
from tests.support.ranks import mlp_tokens, tiny_run
from tests.support.ranks.pool import gloo_ranks

TINY = tiny_model.tokenizer()


@effect("val_dataset_shuffle")
def test_val_dataset_shuffle_changes_the_order_of_validation(prepared, write, rows):
    path = write("val.jsonl", rows)
    in_order = answers(prepared(val_dataset=[path]).validation)
    shuffled = answers(prepared(val_dataset=[path], val_dataset_shuffle=True).validation)
    assert in_order == [f"r{n}" for n in range(20)] != shuffled
    assert sorted(shuffled) == sorted(in_order)


@effect("dataset_num_proc")
def test_dataset_num_proc_tokenizes_the_same_in_other_processes(prepared, monkeypatch):
    one = answers(prepared().train)
    here = []
    monkeypatch.setattr("megatron_trainer.data.encoding.encode.Encoder.encode", lambda *_: here.append(1))
    assert answers(prepared(dataset_num_proc=2, load_from_cache_file=False).train) == one
    assert here == []


@effect("load_from_cache_file")
def test_load_from_cache_file_decides_whether_rows_are_tokenized_again(prepared):
    done = []

    def progress(_, rows):
        done.append(rows)

    for _ in range(2):
        prepared(progress=progress)
    assert done == [20]
    prepared(progress=progress, load_from_cache_file=False)
    assert done == [20, 20]


@effect("interleave_prob", "stopping_strategy")
def test_interleave_prob_mixes_and_stopping_strategy_ends_the_mixture(prepared, write, rows):
    paths = [write("a.jsonl", rows), write("b.jsonl", [{"query": "q", "response": f"s{n}"} for n in range(5)])]
    common = {"dataset": paths, "dataset_shuffle": False}
    joined = answers(prepared(**common).train)
    mixed = answers(prepared(**common, interleave_prob=[0.5, 0.5]).train)
    every = answers(prepared(**common, interleave_prob=[0.5, 0.5], stopping_strategy="all_exhausted").train)
    assert joined == [f"r{n}" for n in range(20)] + [f"s{n}" for n in range(5)]
    assert mixed[-1] == "s4"
    assert 0 < sum(answer.startswith("r") for answer in mixed) < 20
    assert set(every) == set(joined)
    assert len(every) > 30


@effect("download_mode")
def test_download_mode_is_passed_to_the_hub_library(prepared, monkeypatch, rows):
    asked = []

    def load_dataset(name, subset, **options):
        asked.append((name, subset, options["download_mode"]))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    prepared(dataset=["org/set:part"])
    prepared(dataset=["org/set:part"], download_mode="force_redownload")
    assert asked == [
        ("org/set", "part", "reuse_dataset_if_exists"),
        ("org/set", "part", "force_redownload"),
    ]


@effect("columns")
def test_columns_renames_before_the_format_is_recognized(prepared, write):
    path = write("odd.jsonl", [{"text1": "q", "text2": "r"}])
    assert answers(prepared(dataset=[path], columns={"text1": "query", "text2": "response"}).train) == ["r"]
    with pytest.raises(InvalidInput, match="no known columns"):
        prepared(dataset=[path])


@effect("custom_dataset_info")
def test_custom_dataset_info_names_data_sets_for_training_and_validation(prepared, write, monkeypatch):
    """With columns of their own, in the same run as data sets that no file names; the cache tells them apart."""
    write("odd.jsonl", [{"text1": "q", "text2": "r"}])
    columns = {"text1": "query", "text2": "response"}
    (entry, turned) = (
        {"dataset_name": name, "dataset_path": "odd.jsonl", "columns": each}
        for name, each in (("odd", columns), ("turned", dict(zip(columns, reversed(columns.values()), strict=True))))
    )
    named = write("dataset_info.json", [[entry, turned]])
    plain = write("plain.jsonl", [{"query": "a", "response": "b"}])
    run = prepared(dataset=["odd", plain], val_dataset=["turned"], custom_dataset_info=[named], dataset_shuffle=False)
    assert (answers(run.train), answers(run.validation)) == (["r", "b"], ["q"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or the Hub is asked for it, six times
    with pytest.raises(InvalidInput, match="neither a local path nor"):
        prepared(dataset=["odd"])


@effect("strict")
def test_strict_stops_at_a_row_that_is_dropped_otherwise(prepared, write, rows):
    path = write("bad.jsonl", [*rows, {"odd": 1}])
    assert len(prepared(dataset=[path]).train) == 20
    with pytest.raises(InvalidInput, match=r"bad.jsonl:21: no known columns"):
        prepared(dataset=[path], strict=True)


@effect("model_name", "model_author")
def test_model_name_and_author_fill_self_cognition_data(prepared, write):
    rows = [
        {"query": "who", "response": "I am {{NAME}} of {{AUTHOR}}", "tag": "en"},
        {"query": "谁", "response": "{{NAME}} {{AUTHOR}}", "tag": "zh"},
    ]
    common = {"dataset": [write("self.jsonl", rows)], "dataset_shuffle": False}
    assert answers(prepared(**common).train)[0] == "I am {{NAME}} of {{AUTHOR}}"
    named = prepared(**common, model_name=["小鹰", "Hawk"], model_author=["Lab"])
    assert answers(named.train) == ["I am Hawk of Lab", "小鹰 Lab"]


@effect("padding_side")
def test_padding_side_is_where_short_samples_are_filled_up(prepared, write):
    path = write("two.jsonl", [{"query": "q", "response": "r"}, {"query": "longer", "response": "answer"}])
    sides = {}
    for side in ("left", "right"):
        arguments = parse(
            {"model": "m", "dataset": [path], "padding_free": False, "padding_side": side, "train_iters": 1}, task="sft"
        ).args
        items = prepared(dataset=[path], dataset_shuffle=False).train
        sides[side] = collate(list(items), row_shape(arguments, pad_id=0)).padding_BT[0].tolist()
    assert sides["left"] == sides["right"][::-1]
    assert sides["left"][0]
    assert not sides["left"][-1]


@effect("packing", "packing_length")
def test_packing_joins_whole_samples_up_to_packing_length(prepared):
    single = prepared()
    for length in (None, 400):
        given = {} if length is None else {"packing_length": length}
        packed = prepared(packing=True, **given)
        assert sorted(answers(packed.train)) == sorted(answers(single.train))
        sums = [sum(sample.length for sample in row) for row in packed.train]
        assert (length or 200) / 2 < max(sums) <= (length or 200)


@effect("lazy_tokenize")
def test_lazy_tokenize_gives_the_same_items_without_tokenizing_first(prepared):
    done = []
    before = prepared(progress=lambda *_: done.append(1))
    lazy = prepared(lazy_tokenize=True, progress=lambda *_: done.append(1))
    assert answers(lazy.train) == answers(before.train)
    assert len(done) == 1
    assert isinstance(lazy.train.stores[0], LazyStore)


@pytest.mark.parametrize("other", [{"packing": True}, {"group_by_length": True}])
def test_lazy_tokenize_gives_way_to_what_needs_the_length_of_every_sample(prepared, other):
    done = []
    lazy = prepared(lazy_tokenize=True, progress=lambda *_: done.append(1), **other)
    assert len(done) == 1
    assert len(lazy.train) == len(prepared(**other).train)


@effect("cached_dataset")
def test_cached_dataset_is_tokenized_data_of_an_earlier_time(prepared, tmp_path):
    made = prepared()
    write_store(made.train, tmp_path / "cached" / "train")
    read = prepared(cached_dataset=[str(tmp_path / "cached")], dataset_shuffle=False)
    assert answers(read.train) == answers(made.train)


@effect("cached_val_dataset")
def test_cached_val_dataset_is_tokenized_validation_data(prepared, tmp_path):
    """The train folder itself may be named, as ms-swift 4.x does."""
    made = prepared(split_dataset_ratio=0.25)
    for part, items in (("train", made.train), ("val", made.validation)):
        write_store(items, tmp_path / "cached" / part)
    train, val = str(tmp_path / "cached" / "train"), str(tmp_path / "cached" / "val")
    read = prepared(cached_dataset=[train], cached_val_dataset=[val], dataset_shuffle=False)
    assert (answers(read.train), answers(read.validation)) == (answers(made.train), answers(made.validation))
    assert prepared(cached_dataset=[train]).validation is None


@effect("to_cached_dataset")
def test_to_cached_dataset_writes_what_cached_dataset_reads(prepared, tmp_path, write, rows):
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 200}')
    given = {"model": str(tmp_path / "model"), "dataset": [write("train.jsonl", rows)], "split_dataset_ratio": 0.25}
    exported = parse({**given, "to_cached_dataset": True, "dataset_shuffle": False}, task="export")
    assert exported.violations == ()
    write_cached(exported.args, "sft", tmp_path / "cached")
    assert sorted(path.name for path in (tmp_path / "cached").iterdir()) == ["train", "val"]
    read = prepared(cached_dataset=[str(tmp_path / "cached")], dataset_shuffle=False)
    assert (len(read.train), len(read.validation)) == (15, 5)
    assert {*answers(read.train), *answers(read.validation)} == {f"r{n}" for n in range(20)}


@effect("streaming")
def test_streaming_reads_and_tokenizes_while_training(prepared, rows):
    done = []
    stream = prepared(streaming=True, dataset_shuffle=False, progress=lambda *_: done.append(1))
    sampler = StreamSampler(micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1, num_epochs=2)
    assert (stream.num_items, done) == (None, [])
    assert answers(item for [item] in micro_batches_of(stream.train, sampler)) == [row["response"] for row in rows] * 2


@effect("shuffle_buffer_size")
def test_shuffle_buffer_size_is_how_many_rows_of_a_stream_are_shuffled_together(prepared):
    sampler = StreamSampler(micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1, num_epochs=1)
    for size in (4, 10):
        stream = prepared(streaming=True, shuffle_buffer_size=size).train
        read = [int(answer[1:]) for answer in answers(item for [item] in micro_batches_of(stream, sampler))]
        assert [n // size for n in read] == sorted(n // size for n in range(20))
        assert read != list(range(20))


@pytest.mark.dist
@effect("enable_channel_loss")
def test_enable_channel_loss_reports_the_loss_of_each_channel(train, write):
    """The mean over channels, weighted with their trained tokens, is the loss; rows without a channel are one too."""
    responses = {"a": "Blue.", "b": "The dog barks, and the fox says something else.", None: "Yes."}
    path = write("channels.jsonl", [{"query": "q", "response": r, "channel": c} for c, r in responses.items()] * 2)
    given = {"dataset": [path], "val_dataset": [path], "global_batch_size": 6, "train_iters": 1, "eval_interval": 1}
    given |= {"lr": 1e-9}  # so that the evaluation after the step gives the losses of the step
    without, run = train(**given), train(**given, enable_channel_loss=True)
    (step, evaluated), names = (run.log[0], run.log[1]), ("loss_None", "loss_a", "loss_b")
    assert not {*names} & without.log[0].keys()
    assert step["lm loss"] == without.log[0]["lm loss"]
    tokens = {name: len(TINY(responses[None if name == "loss_None" else name[-1]])["input_ids"]) + 1 for name in names}
    mean = sum(step[name] * tokens[name] for name in names) / sum(tokens.values())
    assert mean == pytest.approx(step["lm loss"], abs=1e-6)
    assert len({round(step[name], 2) for name in names}) == 3
    assert [evaluated[f"eval_{name}"] for name in names] == pytest.approx([step[name] for name in names], abs=1e-6)


@pytest.mark.dist
@effect("mlp_padding_free")
def test_mlp_padding_free_passes_over_padding_in_the_feed_forward_block(train, llama, data):
    """Equal losses, with full recomputation too; the block's input shrinks from whole rows to the real tokens."""
    padded = {"padding_free": False, "micro_batch_size": 4, "global_batch_size": 4, "train_iters": 3}
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    plain, spared, again = train(**padded), *(train(**padded, mlp_padding_free=True, **more) for more in ({}, full))
    assert spared.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=1e-5)
    assert again.column("lm loss") == pytest.approx(plain.column("lm loss"), abs=1e-5)
    rows, real = (gloo_ranks(1).run(mlp_tokens.count, llama, data, mlp_padding_free=flag)[0] for flag in (False, True))
    assert rows["tokens"] == rows["row_tokens"]
    assert rows["real_tokens"] <= real["tokens"] <= rows["real_tokens"] + 3  # the last token of each shorter row
    assert real["tokens"] < rows["row_tokens"]


@pytest.mark.dist
@effect("group_by_length")
def test_group_by_length_reads_samples_of_like_length_together(write, llama, tmp_path):
    """24 rows, short and long by turns, two to a micro-batch: grouped, no short row is padded to a long one."""
    rows = [{"query": "q", "response": "yes " * (1 if number % 2 else 9)} for number in range(24)]
    settings = {"padding_free": False, "micro_batch_size": 2, "global_batch_size": 2, "train_iters": 12}
    tokens = {}
    for is_grouped in (False, True):
        save = tmp_path / str(is_grouped)
        given = tiny_run.arguments(llama, write("turns.jsonl", rows), save, group_by_length=is_grouped, **settings)
        run = tiny_run.train(given)
        assert run.exit_code == 0, run.message
        tokens[is_grouped] = run.column("tokens")
    assert (len(set(tokens[False])), len(set(tokens[True]))) == (3, 2), tokens
    assert sum(tokens[True]) == sum(tokens[False])
