"""split_turns: each answer as the last one of a row of its own; the same prepared, cached, lazy and streamed."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from megatron_trainer.data.cached import open_cached, write_store
from megatron_trainer.data.encoding.encode import Encoder, EncodeSettings
from megatron_trainer.data.encoding.turn_rows import NOTE
from megatron_trainer.data.prepare import prepare
from megatron_trainer.data.row import Record
from megatron_trainer.data.streaming.items import StreamSampler, micro_batches_of
from megatron_trainer.data.values import Rejection
from megatron_trainjob.args.tree import TrainArgs
from tests.support.data.template_matrix import MODELS
from tests.support.models.text_models import THINKING, chatml_tokenizer

TOKENIZER = chatml_tokenizer(THINKING)
MODELS_BY_NAME = {model.name.partition(": ")[2]: model for model in MODELS}


def turn(role, content, **fields):
    return {"role": role, "content": content, **fields}


def thinking(number, **fields):
    return turn("assistant", f"<think>\nt{number}\n</think>\n\nr{number}", **fields)


ROUNDS = {
    "messages": [
        *(turn("user", "q0"), thinking(0), turn("user", "q1"), thinking(1, weight=0)),
        *(turn("user", "q2"), thinking(2), turn("assistant", "and r3"), turn("user", "bye")),
    ]
}
PLAIN = {"query": "q4", "response": "r4"}
EXPECTED = [
    "<think>\nt0\n</think>\n\nr0<|im_end|>",
    "<think>\nt2\n</think>\n\nr2<|im_end|><think>\n\n</think>\n\nand r3<|im_end|>",
    "<think>\n\n</think>\n\nr4<|im_end|>",
]


def trained(samples):
    return [TOKENIZER.decode(sample.input_ids[sample.labels >= 0]) for sample in samples]


def run(folder, **fields):
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [ROUNDS, PLAIN])) + "\n{\n")
    args = TrainArgs(**{"dataset": (str(path),), "split_turns": True, "dataset_shuffle": False, **fields})
    return prepare(args, TOKENIZER, task="sft", max_length=200, save=folder / "save", is_first_rank=True)


def test_each_answer_is_the_last_of_a_row_of_its_own(tmp_path):
    prepared = run(tmp_path)
    assert trained(prepared.train) == EXPECTED
    texts = [TOKENIZER.decode(sample.input_ids) for sample in prepared.train]
    assert "<think>" not in texts[1].partition("q2")[0], "thoughts of earlier turns stay as the template has them"
    [report] = prepared.report.datasets
    assert (report.rows_read, report.rows_kept) == (4, 3)
    assert f"2 rows: {NOTE}" in report.notes
    assert not any("preserve_thinking" in note for note in report.notes)


@pytest.mark.parametrize("tokenizing", [{"lazy_tokenize": True}, {"dataset_num_proc": 2}])
def test_lazy_and_parallel_rows_are_the_same(tmp_path, tokenizing):
    items = run(tmp_path, **tokenizing).train
    assert trained(items[n] for n in range(3)) == EXPECTED


def test_streamed_rows_are_the_same(tmp_path):
    stream = run(tmp_path, streaming=True, train_iters=3).train
    sampler = StreamSampler(micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1)
    assert trained(item for batch in islice(micro_batches_of(stream, sampler), 3) for item in batch) == EXPECTED


def test_cached_rows_are_the_same(tmp_path):
    write_store(run(tmp_path).train, tmp_path / "cached")
    store, _ = open_cached(tmp_path / "cached", tmp_path / "cache")
    assert trained(store[n] for n in range(3)) == EXPECTED


def test_another_reading_of_the_same_file_is_another_cache(tmp_path):
    assert len(run(tmp_path).train) == 3
    assert len(run(tmp_path, split_turns=False).train) == 2


@pytest.mark.parametrize("tokenizing", [{}, {"lazy_tokenize": True}])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"loss_scale": "last_round"}, {}),
        ({}, {"loss_scale": "last_round"}),
        ({}, {"columns": {"messages": "rounds", "query": "question"}}),
    ],
)
def test_rows_split_under_other_settings_are_another_cache(tmp_path, before, after, tokenizing):
    run(tmp_path, **before, **tokenizing)
    found, fresh = (run(folder, **after, **tokenizing).train for folder in (tmp_path, tmp_path / "fresh"))
    assert len(found) == len(fresh)
    assert trained(found) == trained(fresh)


def test_pairs_split_under_other_column_names_are_another_cache(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "q", "response": "good", "worse": "bad", "desirable": True}) + "\n")
    given = {"dataset": (str(path),), "rlhf_type": "kto", "lazy_tokenize": True}
    for columns, rows in (({"worse": "rejected", "desirable": "label"}, 1), ({"worse": "rejected"}, 2)):
        args = TrainArgs(**given, columns=columns)
        prepared = prepare(args, TOKENIZER, task="rlhf", max_length=200, save=tmp_path / "save", is_first_rank=True)
        assert len(prepared.train) == rows


@pytest.mark.parametrize("name", ["mistral_v2v3", "mistral_v3_tekken"])
def test_the_system_prompt_stands_where_the_model_gets_it(name):
    messages = [turn("system", "Be brief."), *(turn("user", "q0"), turn("assistant", "r0"))] + [
        *(turn("user", "Be"), turn("assistant", "r1"))
    ]
    tokenizer = MODELS_BY_NAME[name].tokenizer()
    encoder = Encoder(tokenizer, EncodeSettings())
    for number, end in enumerate((3, 5)):
        [row] = encoder.encode([Record(0, "f", 1, {"messages": messages}, answer=number)])
        prompt = tokenizer.apply_chat_template(messages[: end - 1], tokenize=False, add_generation_prompt=True)
        text = tokenizer.decode(row.input_ids[0])
        assert text.startswith(prompt)
        assert text.removeprefix(prompt).strip() == f"r{number}</s>"
        assert tokenizer.decode(row.input_ids[0][row.weights[0] > 0]).strip() == f"r{number}</s>"
    [whole] = encoder.encode([Record(0, "f", 1, {"messages": messages})])
    assert isinstance(whole, Rejection), "the first answer would be trained without the system prompt before it"
    assert whole.reason == "the chat template leaves out the system prompt"
    last = Encoder(tokenizer, EncodeSettings(loss_scale="last_round")).encode(
        [Record(0, "f", 1, {"messages": messages})]
    )
    assert tokenizer.decode(last[0].input_ids[0]) == text
