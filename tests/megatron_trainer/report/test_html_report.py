"""The HTML report, parsed."""

import re
from html.parser import HTMLParser

import pytest

from megatron_trainer.report import Answer, CheckpointRecord, FinishRecord, PhaseRecord
from megatron_trainer.report.html_report import HtmlReport, render
from megatron_trainer.report.jsonl import checkpoint_row, eval_row, log_row
from tests.support.data.report_records import EPOCH, Clock, evaluation, log_record, run_info

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Texts by tag or class, all attributes, and a check that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts = [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class", "")))

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if data.strip() and self.open:
            for name in self.open[-1]:
                self.texts.setdefault(name, []).append(data.strip())

    def facts(self):
        return dict(zip(self.texts["th"], self.texts["td"], strict=True))


def rows(num_steps=5):
    found = []
    for iteration in range(1, num_steps + 1):
        record = log_record(iteration=iteration, losses={"lm loss": 4.0 / iteration}, utilization=0.41)
        found.append(log_row(record, log_throughput=False))
    return [*found, eval_row(evaluation(num_steps, 2.5))]


def page(run=None, finish=None, phase="finished", found=None):
    return Page(render(run or run_info(), rows() if found is None else found, finish=finish, phase=phase, now=EPOCH))


def test_the_numbers_that_a_reader_looks_for_are_on_top():
    texts = page(run=run_info(total_iterations=206)).texts
    assert texts["tile-value"] == ["5", "0.8", "2.5", "2105", "41.0 %", "5s"]
    assert texts["tile-label"] == [
        *("Iterations", "of 206"),
        *("Training loss", "4 at the start"),
        *("Validation loss", "one round"),
        *("Tokens per second", "50,000 tokens trained on"),
        *("Model FLOPs utilization", "of the device's peak"),
        *("Elapsed", "since the last start"),
    ]


def test_every_curve_has_its_own_chart_and_the_loss_a_legend():
    found = page()
    assert found.texts["h2"][:4] == [
        "Loss",
        "Learning rate",
        "Gradient norm, before clipping",
        "Tokens per second, without padding",
    ]
    assert [text for text in found.texts["span"] if text in ("training", "validation")] == ["training", "validation"]
    assert "iteration 5\ntraining: 0.8\nvalidation: 2.5" in found.texts["title"]


def test_further_metrics_get_charts_after_the_others():
    row = log_row(log_record(losses={"lm loss": 2.0, "loss_code": 1.5}), log_throughput=False)
    assert page(found=[row]).texts["h2"][4] == "Loss_code"


def test_facts_say_model_layout_data_outputs_and_arguments():
    data = {
        "datasets": [
            {
                "name": "/data/train.jsonl",
                "rows_read": 402,
                "rows_kept": 400,
                "rows_truncated": 1,
                "tokens": 24018,
                "trained_tokens": 5650,
                "dropped": [
                    {"reason": "empty answer", "rows": 2, "example_location": "a.jsonl:12", "example_detail": "turn 2"}
                ],
            }
        ],
        "validation": [],
        "samples": 400,
        "tokens_per_epoch": 24018,
        "length_min": 31,
        "length_median": 58,
        "length_max": 101,
        "packing": {"rows": 95, "length": 256, "fill": 0.9876},
    }
    run = run_info(data=data, start_iteration=3, arguments_given={"lr": 1e-4, "dataset": ["/a", "/b"], "to_hf": True})
    facts = page(run=run, finish=FinishRecord(phase="finished", iteration=5, outputs={"adapter": "/out/a"})).facts()
    expected = {
        "Model": "/data/model",
        "Trained parameters": "2,442,240 (1.78 %)",
        "Processes": "2 x AMD EPYC",
        "Data parallel": "2 ranks",
        "Micro-batch": "4 samples, 2 per step and rank",
        "Resumed after": "iteration 3",
        "Training": "/data/train.jsonl: 400 of 402 rows, 24,018 tokens (5,650 trained), 1 row truncated",
        "Dropped": "2 rows: empty answer; the first is a.jsonl:12 (turn 2)",
        "Lengths": "31 to 101 tokens, median 58",
        "An epoch": "400 samples, 24,018 tokens",
        "Packed": "95 rows of 256 tokens, 98.76 % filled",
        "adapter": "/out/a",
        "lr": "1.000e-4",
        "dataset": "[/a, /b]",
        "to_hf": "true",
    }
    assert {name: facts[name] for name in expected} == expected
    assert "Tensor parallel" not in facts


def test_the_lengths_of_the_data_are_a_picture():
    data = {"histogram": {"edges": [0, 16, 32, 1024, 2048], "rows": [3, 0, 12, 1]}}
    found = page(run=run_info(data=data))
    assert "Samples by their length in tokens" in found.texts["h2"]
    assert {"1-16: 3", "17-32: 0", "33-1,024: 12", "1,025-2,048: 1"} <= set(found.texts["title"])
    assert "Samples by their length in tokens" not in page().texts["h2"]


def test_a_dataset_that_is_read_while_training_has_no_numbers_yet():
    names = ({"name": "a.jsonl"}, {"name": "b.jsonl", "rows_read": 3, "rows_kept": None})
    facts = [page(run=run_info(data={"datasets": [source]})).facts()["Training"] for source in names]
    assert facts == ["a.jsonl: read and tokenized while training", "b.jsonl: read and tokenized while training"]


def test_the_newest_checkpoint_is_shown_while_the_run_goes_on():
    found = [*rows(), checkpoint_row(CheckpointRecord(iteration=5, path="/out/iter_0000005", seconds=1.0))]
    assert page(found=found, phase="training").facts()["checkpoint"] == "/out/iter_0000005"


def test_the_page_needs_nothing_from_outside():
    text = render(run_info(), rows(), finish=None, phase="training", now=EPOCH)
    assert re.findall(r"https?:|//\w|url\(|@import|<script|<link|<img", text) == []
    assert [name for name, _ in Page(text).attributes if name in ("src", "href")] == []


def test_what_users_write_is_escaped():
    answer = Answer(question="<script>alert(1)</script>", before=None, after="a < b & c", expected="<i>")
    run = run_info(job_name="<b>job</b>", arguments_given={"system": "</td><script>"})
    text = render(run, rows(), finish=FinishRecord(phase="finished", iteration=5, answers=(answer,)), phase="x", now=0)
    assert "<script" not in text
    assert Page(text).texts["dd"] == ["a < b & c", "<i>"]


@pytest.mark.parametrize("found", [[], [eval_row(evaluation(1))], rows(1)], ids=["none", "evaluation", "one-step"])
def test_a_run_with_hardly_any_rows_has_a_page(found):
    assert page(found=found).texts["h1"] == ["quickstart"]


def test_a_loss_that_is_not_a_number_has_a_page():
    found = [log_row(log_record(losses={"lm loss": "NaN"}), log_throughput=False)]
    assert page(found=found, phase="failed").texts["phase failed"] == ["failed"]


def test_a_running_page_reloads_itself_and_a_finished_one_does_not():
    assert ("http-equiv", "refresh") in page(phase="training").attributes
    assert ("http-equiv", "refresh") not in page(phase="finished").attributes


def test_the_file_is_written_at_the_start_then_rarely_and_at_the_end(tmp_path):
    clock, path = Clock(), tmp_path / "report.html"
    sink = HtmlReport(path, rows=tmp_path / "logging.jsonl", interval=1, now=clock)
    sink.write(run_info())
    assert "starting" in Page(path.read_text()).texts["phase live"]
    sink.write(PhaseRecord(phase="training"))
    assert "starting" in Page(path.read_text()).texts["phase live"]
    clock.time += 31
    sink.write(log_record())
    assert Page(path.read_text()).texts["phase live"] == ["training"]
    sink.write(FinishRecord(phase="finished", iteration=5))
    assert Page(path.read_text()).texts["phase finished"] == ["finished"]
    sink.close()
    assert Page(path.read_text()).texts["phase finished"] == ["finished"]


def test_a_run_that_ends_without_finishing_says_so(tmp_path):
    sink = HtmlReport(tmp_path / "report.html", rows=tmp_path / "logging.jsonl", interval=1, now=Clock())
    sink.write(run_info())
    sink.close()
    assert Page((tmp_path / "report.html").read_text()).texts["phase failed"] == ["failed"]


def test_the_first_rows_are_shown_with_what_of_them_is_trained():
    data = {"examples": [[["<|user|>\nq & a", 0.0], ["r<|end|>", 1.0]]]}
    page = render(run_info(data=data), [], finish=None, phase="training", now=0.0)
    assert '&lt;|user|&gt;\nq &amp; a<mark title="weight 1.0">r&lt;|end|&gt;</mark>' in page


def test_preference_training_shows_how_often_the_better_answer_wins():
    pairs = {"loss": 0.5, "rewards/accuracies": 0.75, "rewards/margins": 0.2}
    found = [log_row(log_record(iteration=1, losses=pairs), log_throughput=False)]
    shown = page(found=found).texts
    assert "75.0 %" in shown["tile-value"]
    assert {"Loss", "Rewards, accuracies", "Rewards, margins"} <= set(shown["h2"])


def test_the_pictures_of_the_first_rows_are_shown_and_nothing_else_is_loaded():
    picture = "data:image/jpeg;base64,AAAA"
    data = {"examples": [[["Look ", 0.0], ["at it", 1.0]], [["no image", 0.0]]]}
    data["thumbnails"] = [[picture, "https://elsewhere/x.jpg", 'data:image/svg+xml,<svg onload="x"/>'], []]
    page = Page(render(run_info(data=data), [], finish=None, phase="training", now=0.0))
    assert [value for name, value in page.attributes if name == "src"] == [picture]
