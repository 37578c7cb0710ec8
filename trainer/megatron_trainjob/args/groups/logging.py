"""What a run reports: TensorBoard, Weights & Biases, log level."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Logging:
    """What a run reports: TensorBoard, Weights & Biases, log level."""

    log_params_norm: bool = arg(
        False,
        "Record the L2 norm of the parameters.",
        status="works",
    )
    log_throughput: bool = arg(
        False,
        "Record TFLOP/s per GPU, counted from real tokens.",
        unit="TFLOP/s/GPU",
        status="works",
    )
    log_total_limit: int | None = arg(
        None,
        "Maximum rows of logging.jsonl: beyond it, half of them are dropped, evenly over the run; unset: no limit.",
        unit="rows",
        ge=16,
        status="works",
    )
    tensorboard_log_interval: int = arg(
        1,
        "Steps between two TensorBoard records.",
        unit="steps",
        ge=1,
        status="works",
    )
    tensorboard_queue_size: int = arg(
        50,
        "Events that TensorBoard buffers before it writes.",
        unit="events",
        ge=1,
        status="works",
    )
    log_timers_to_tensorboard: bool = arg(
        True,
        "Write the durations of the parts of a step to TensorBoard.",
        status="works",
    )
    no_log_learning_rate_to_tensorboard: bool = arg(
        False,
        "Write no learning rate to TensorBoard.",
        status="works",
    )
    log_validation_ppl_to_tensorboard: bool = arg(
        True,
        "Write the validation perplexity, exp(min(loss, 20)), to TensorBoard.",
        status="works",
    )
    log_memory_to_tensorboard: bool = arg(
        True,
        "Write memory usage to TensorBoard.",
        status="works",
    )
    logging_level: str | None = arg(
        None,
        "Log level, such as INFO or WARNING; unset: INFO.",
        applies_to=EVERY_TASK,
        status="works",
    )
    report_to: tuple[Literal["tensorboard", "wandb", "swanlab"], ...] = arg(
        (),
        "Further places to report to; TensorBoard files, logging.jsonl and report.html are always written.",
        status="works",
    )
    wandb_project: str = arg(
        "",
        "Weights & Biases project; empty: off, or megatron-train-operator with report_to.",
        status="works",
    )
    wandb_exp_name: str = arg(
        "",
        "Weights & Biases run name; empty: the name of the folder in save.",
        status="works",
    )
    wandb_save_dir: str = arg(
        "",
        "Folder for Weights & Biases files; empty: {save}/wandb.",
        status="works",
    )
    swanlab_project: str = arg(
        "",
        "SwanLab project for report_to: [swanlab]; empty: megatron-train-operator.",
        status="works",
    )
    swanlab_exp_name: str = arg(
        "",
        "SwanLab experiment name; empty: the name of the folder in save. Its files are in {save}/swanlab.",
        status="works",
    )
