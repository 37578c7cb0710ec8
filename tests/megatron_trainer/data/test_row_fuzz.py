"""Rows in mixed dialects under real chat templates: none is trained with a part missing that is not counted.

400 rows each time, 5,000 with the slow tests.
"""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_trainer.data.conversation.formats import Recognition
from megatron_trainer.data.encoding.encode import LEFT_OUT, Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Rejection
from tests.support.data.row_fuzz import Fuzz
from tests.support.data.template_matrix import MODELS, stop_words, trained_runs

TEMPLATES = (
    *("qwen2_5", "qwen3", "qwen3_6", "llama3_1", "deepseekv3", "glm4moe", "gptoss"),
    *("gemma3", "mistral_v2v3", "jamba"),
)
NUM_ROWS = (40, pytest.param(500, marks=pytest.mark.slow))
SETTINGS = EncodeSettings(recognition=Recognition(needs_question=True))
MODELS_BY_NAME = {model.name.partition(": ")[2]: model for model in MODELS}
TOLD = ("the chat template ", "an answer ends with no stop token", "no token to train on")


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_row_is_trained_with_a_part_missing(name, num_rows):
    model = MODELS_BY_NAME[name]
    tokenizer = model.tokenizer()
    fuzz = Fuzz(seed=TEMPLATES.index(name))
    rows = [fuzz.row() for _ in range(num_rows)]
    results = Encoder(tokenizer, SETTINGS).encode([Record(n, "f", n + 1, row.fields) for n, row in enumerate(rows)])
    reasons = Counter()
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, Rejection):
            reasons[result.reason] += 1
            assert result.reason.startswith(TOLD), (result, row.fields)
            continue
        text = tokenizer.decode(result.input_ids[0])
        missing = [word for word in row.words if word not in text]
        assert not missing, (row.fields, text)
        runs = trained_runs(model, result)
        assert all(run.endswith(stop_words(model)) for run in runs), (row.fields, runs)
        assert not [word for word in row.masked if any(word in run for run in runs)], (row.fields, runs)
    assert sum(reasons.values()) < num_rows * 0.7, reasons


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_incomplete_rows_that_are_kept_are_counted(num_rows):
    model = MODELS_BY_NAME["llama3_1"]
    fuzz = Fuzz(seed=99)
    rows = [fuzz.row() for _ in range(num_rows)]
    settings = EncodeSettings(recognition=SETTINGS.recognition, keeps_incomplete=True)
    results = Encoder(model.tokenizer(), settings).encode([Record(n, "f", n, row.fields) for n, row in enumerate(rows)])
    for row, result in zip(rows, results, strict=True):
        if not isinstance(result, Rejection):
            text = model.tokenizer().decode(result.input_ids[0])
            missing = [word for word in row.words if word not in text]
            assert not missing or any(note.startswith(LEFT_OUT) for note in result.notes), (row.fields, missing)
