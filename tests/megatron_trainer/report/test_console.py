"""The lines of a pod's log, letter by letter."""

import io

import pytest

from megatron_trainer.report import Answer, CheckpointRecord, FinishRecord, PhaseRecord, duration
from megatron_trainer.report.console import Console, has_perplexity, log_line, perplexity
from tests.support.data.report_records import evaluation, log_record, run_info


def written(*events):
    stream = io.StringIO()
    console = Console(stream, interval=5, log_throughput=False)
    for event in events:
        console.write(event)
    return stream.getvalue()


def test_log_line_has_the_parts_of_the_reference_in_its_order():
    parts = log_line(log_record(), log_throughput=False).split(" | ")
    assert parts[0].endswith("] iteration        5/     206")
    assert parts[1:] == [
        "consumed samples:          320",
        "elapsed time per iteration (ms): 950.1",
        "memory(GiB): 61.20",
        "elapsed time: 5s",
        "remaining time: 3m 21s",
        "tokens per second: 2105",
        "learning rate: 4.854369E-06",
        "global batch size:    64",
        "lm loss: 1.180399E+00",
        "loss scale: 1.0",
        "grad norm: 1.105",
        "number of skipped iterations:   0",
        "number of nan iterations:   0 |",
    ]


def test_throughput_is_shown_when_asked_for_and_known():
    record = log_record(tflops_per_gpu=412.345, utilization=0.4169, params_norm=88.5, num_zeros_in_gradient=3.0)
    line = log_line(record, log_throughput=True)
    assert "| throughput per GPU (TFLOP/s/GPU): 412 | MFU: 41.7 % |" in line
    assert "| grad norm: 1.105 | params norm: 88.500 | num zeros: 3.000 |" in line
    assert "throughput" not in log_line(record, log_throughput=False)
    assert "throughput" not in log_line(log_record(), log_throughput=True)


@pytest.mark.parametrize(("waited_s", "shown"), [(0.0, False), (0.005, False), (0.3, True)])
def test_a_wait_for_data_is_shown_where_it_matters(waited_s, shown):
    line = log_line(log_record(timers_s={"data-wait": waited_s}), log_throughput=False)
    assert ("| elapsed time per iteration (ms): 950.1 | data wait (ms): 300.0 |" in line) == shown
    assert ("data wait" in line) == shown


def test_evaluation_shows_loss_and_perplexity():
    assert written(evaluation(10, 2.0)) == (
        " validation loss at iteration 10 | lm loss value: 2.000000E+00 | lm loss PPL: 7.389056E+00 | "
        "48 samples in 2.5 s |\n"
    )


def test_what_is_no_cross_entropy_has_no_perplexity():
    assert [name for name in ("lm loss", "nll_loss", "loss_a", "loss", "rewards/margins") if has_perplexity(name)] == [
        "lm loss",
        "nll_loss",
        "loss_a",
    ]


def test_perplexity_is_cut_where_it_would_overflow():
    assert perplexity(1000.0) == perplexity(20.0) == pytest.approx(4.85165e8, rel=1e-5)


def test_start_says_what_is_trained_on_what():
    assert written(run_info(start_iteration=7)) == (
        " sft lora of /data/model: 137.0 M parameters, 2.44 M trained (1.78 %), bfloat16\n"
        " 2 x AMD EPYC | tp=1 pp=1 cp=1 dp=2 ep=1 | global batch size 16 | 20 iterations | "
        "resuming after iteration 7\n"
    )


def test_start_says_what_became_of_the_data():
    drop = {"reason": "not JSON", "rows": 3, "example_location": "a.jsonl:7", "example_detail": ""}
    source = {
        "name": "a.jsonl",
        "rows_read": 10,
        "rows_kept": 7,
        "tokens": 900,
        "trained_tokens": 90,
        "dropped": [drop],
    }
    assert written(run_info(data={"datasets": [source]})).splitlines()[2:] == [
        " Training: a.jsonl: 7 of 10 rows, 900 tokens (90 trained)",
        " Dropped: 3 rows: not JSON; the first is a.jsonl:7",
    ]


def test_end_shows_outputs_and_answers_and_phases_are_silent():
    answer = Answer(question="What is 1 + 1?", before="I think", after="2")
    text = written(
        PhaseRecord(phase="saving"),
        CheckpointRecord(iteration=10, path="/out/iter_0000010", seconds=1.25),
        FinishRecord(phase="finished", iteration=20, outputs={"adapter": "/out/adapter"}, answers=(answer,)),
    )
    assert text.splitlines() == [
        " saved checkpoint of iteration 10 in 1.2 s: /out/iter_0000010",
        " finished after iteration 20",
        " adapter: /out/adapter",
        " question: What is 1 + 1?",
        " before: I think",
        " after: 2",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (-3, "0s"), (59.6, "1m 0s"), (201, "3m 21s"), (3605, "1h 0m 5s"), (176_405, "2d 1h 0m 5s")],
)
def test_durations_read_as_words(seconds, words):
    assert duration.in_words(seconds) == words
