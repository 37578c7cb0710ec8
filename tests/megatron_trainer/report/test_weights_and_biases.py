"""Weights & Biases, offline: what it stores on disk."""

import sys

import pytest

from megatron_trainer.failure import InvalidInput
from megatron_trainer.report import FinishRecord
from megatron_trainer.report.reporter import Reporter
from megatron_trainer.report.weights_and_biases import WeightsAndBiases
from tests.support.data.report_records import Clock, evaluation, log_record, run_info, step


def test_a_missing_package_is_a_problem_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InvalidInput) as raised:
        WeightsAndBiases("llm", "first", tmp_path, interval=5)
    [violation] = raised.value.violations
    assert (violation.path, violation.value) == ("spec.args.wandb_project", "llm")
    assert "install it or leave this empty" in violation.message


@pytest.mark.slow
def test_a_client_that_has_ended_ends_no_training(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    reporter = Reporter([sink := WeightsAndBiases("llm", "first", tmp_path, interval=1)], now=Clock())
    sink._run.finish()
    reporter.start(run_info())
    reporter.step(step(1, 2.5))
    reporter.close()
    assert "cannot write report sink=WeightsAndBiases event=LogRecord" in caplog.messages


@pytest.mark.slow
def test_an_offline_run_is_stored_and_a_restart_continues_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for attempt in range(2):
        sink = WeightsAndBiases("llm", "first", tmp_path, interval=5)
        sink.write(run_info(start_iteration=5 * attempt, arguments_given={"lr": 1e-3}))
        sink.write(log_record(iteration=5 * (attempt + 1)))
        sink.write(evaluation(5 * (attempt + 1)))
        sink.write(FinishRecord(phase="finished", iteration=10, outputs={"adapter": "/out/adapter"}))
        sink.close()
    run_id = (tmp_path / "run-id").read_text()
    stored = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert stored
    content = b"".join(path.read_bytes() for path in stored)
    for text in (b"lm loss", b"eval_lm loss", b"tokens_per_second", b"/out/adapter", b"learning_rate"):
        assert text in content
