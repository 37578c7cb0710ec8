"""Small factories of the report's records, and a clock that tests move by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_trainer.report import EvalRecord, LogRecord, RunInfo, StepRecord

EPOCH = 1_795_500_000.0  # 2026-11-24 06:00:00 UTC


@dataclass
class Clock:
    """Seconds since the epoch; call it to read it."""

    time: float = EPOCH

    def __call__(self) -> float:
        return self.time


def run_info(**changes) -> RunInfo:
    run = RunInfo(
        job_name="quickstart",
        task="sft",
        model="/data/model",
        train_type="lora",
        num_parameters=136_957_248,
        num_trainable_parameters=2_442_240,
        device="AMD EPYC",
        world_size=2,
        layout={"tp": 1, "pp": 1, "cp": 1, "dp": 2, "ep": 1},
        dtype="bfloat16",
        micro_batch_size=4,
        global_batch_size=16,
        max_length=256,
        start_iteration=0,
        total_iterations=20,
    )
    return replace(run, **changes)


def step(iteration: int, loss: float = 2.0, **changes) -> StepRecord:
    record = StepRecord(
        iteration=iteration,
        losses={"lm loss": loss},
        learning_rate=1e-3,
        tokens=1000,
        seconds=4.0,
        consumed_samples=16 * iteration,
        gradient_norm=0.5,
    )
    return replace(record, **changes)


def evaluation(iteration: int, loss: float = 2.5) -> EvalRecord:
    return EvalRecord(
        iteration=iteration,
        losses={"lm loss": loss},
        num_samples=48,
        seconds=2.5,
        consumed_samples=16 * iteration,
    )


def log_record(**changes) -> LogRecord:
    record = LogRecord(
        iteration=5,
        total_iterations=206,
        num_steps=5,
        losses={"lm loss": 1.180399},
        learning_rate=4.854369e-06,
        gradient_norm=1.105,
        params_norm=None,
        num_zeros_in_gradient=None,
        loss_scale=1.0,
        consumed_samples=320,
        global_batch_size=64,
        tokens=10_000,
        seconds_per_step=0.9501,
        tokens_per_second=2105.0,
        tokens_per_second_per_gpu=1052.5,
        tflops_per_gpu=None,
        utilization=None,
        memory_bytes=int(61.2 * 2**30),
        timers_s={},
        num_skipped=0,
        num_nan=0,
        elapsed_s=5.2,
        remaining_s=201.0,
        logged_at=EPOCH,
    )
    return replace(record, **changes)
