"""SwanLab, offline: what it stores on disk."""

import sys

import pytest

from megatron_trainer.failure import InvalidInput
from megatron_trainer.report import FinishRecord
from megatron_trainer.report.jsonl import eval_row, log_row
from megatron_trainer.report.reporter import Reporter
from megatron_trainer.report.swan_lab import SwanLab
from megatron_trainer.report.tracking import numbers
from tests.support.data.report_records import Clock, evaluation, log_record, run_info, step
from tests.support.data.swanlab_files import stored_run


def test_a_missing_package_is_a_problem_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(InvalidInput) as raised:
        SwanLab("llm", "first", tmp_path, interval=5)
    [violation] = raised.value.violations
    assert (violation.path, violation.value) == ("spec.args.report_to", ["swanlab"])
    assert "install it or leave this empty" in violation.message


@pytest.mark.slow
def test_without_a_key_a_run_says_what_to_set(tmp_path, monkeypatch):
    pytest.importorskip("swanlab")
    for name in ("SWANLAB_MODE", "SWANLAB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path / "no-login"))
    with pytest.raises(InvalidInput, match="no API key was provided.*SWANLAB_API_KEY from a Secret.*SWANLAB_MODE"):
        SwanLab("llm", "first", tmp_path, interval=5)


@pytest.mark.slow
def test_a_client_that_has_ended_ends_no_training(tmp_path, monkeypatch, caplog):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    reporter = Reporter([sink := SwanLab("llm", "first", tmp_path, interval=1)], now=Clock())
    sink._run.finish()
    reporter.start(run_info())
    reporter.step(step(1, 2.5))
    reporter.close()
    assert "cannot write report sink=SwanLab event=LogRecord" in caplog.messages


@pytest.mark.slow
def test_an_offline_run_is_read_back_and_a_restart_continues_it(tmp_path, monkeypatch, capfd):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    for attempt in range(2):
        sink = SwanLab("llm", "first", tmp_path, interval=5)
        sink.write(
            run_info(start_iteration=5 * attempt, arguments_given={"lr": 1e-3, "target_modules": ["all-linear"]})
        )
        sink.write(log_record(iteration=5 * (attempt + 1)))
        sink.write(evaluation(5 * (attempt + 1)))
        sink.write(FinishRecord(phase="finished", iteration=10, outputs={"adapter": "/out/adapter"}))
        sink.close()
    runs = [stored_run(path) for path in sorted(tmp_path.glob("run-*/*.swanlab"))]
    identity = ("llm", "first", (tmp_path / "run-id").read_text())
    assert [(run.project, run.name, run.run_id) for run in runs] == [identity, identity]
    for at, run in zip((5, 10), runs, strict=True):
        rows = numbers(eval_row(evaluation(at))) | numbers(log_row(log_record(iteration=at), log_throughput=True))
        assert {"lm loss", "eval_lm loss", "tokens_per_second", "learning_rate"} <= rows.keys()
        found = {name: values.get(at) for name, values in run.scalars.items()}
        assert found == pytest.approx(rows, rel=1e-6)
        assert run.config["lr"] == 1e-3
        assert run.config["target_modules"] == ["all-linear"]
        assert run.config["adapter"] == "/out/adapter"
        assert run.is_finished
    assert "rror" not in capfd.readouterr().err
