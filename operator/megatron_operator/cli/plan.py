"""mtj plan: parallel layout, batch arithmetic and memory of a manifest. Starts nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from megatron_operator.cli.fit import show_fit
from megatron_operator.cli.load import Loaded, add_manifest, load
from megatron_operator.cli.output import INVALID, OK, out, show_table, show_violations, show_warnings, table
from megatron_operator.core import rank_layout
from megatron_operator.core.desired.overlay import merged
from megatron_operator.core.desired.quantity import amount
from megatron_operator.core.job import Job
from megatron_operator.core.rank_layout import Rank
from megatron_trainjob import memory
from megatron_trainjob.args import derive
from megatron_trainjob.args.model.check import check
from megatron_trainjob.memory import MemoryEstimate, RankMemory
from megatron_trainjob.memory.checkpoint import Place, of_nodes

MAX_RANKS = 64
MIB, GIB = 1024**2, 1024**3
# Labels that NVIDIA's GPU feature discovery puts on nodes: megabytes, and a product such as NVIDIA-H100-80GB-HBM3.
MEMORY_LABEL = "nvidia.com/gpu.memory"
PRODUCT_LABEL = "nvidia.com/gpu.product"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command = commands.add_parser("plan", help="show parallel layout, batch arithmetic and memory of a manifest")
    add_manifest(command)
    command.add_argument("--all-ranks", action="store_true", help=f"list all ranks, not only the first {MAX_RANKS}")
    command.add_argument(
        "--gpu-memory", type=_size, help="memory of one GPU, for example 80Gi (default: from the node labels)"
    )
    command.add_argument(
        "--fit",
        action="store_true",
        help="search recomputation, micro-batch, moments and offloading for the fastest that fits",
    )
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """0 with the tables, 2 with every problem; with --fit 1 if nothing fits."""
    loaded = load(arguments, local=False)
    if loaded.job is None:
        show_violations(arguments.file, loaded.violations)
        return INVALID
    show_warnings(loaded.job.warnings)
    show_sizes(loaded.job)
    show_ranks(loaded.job, loaded.hf_config, limit=None if arguments.all_ranks else MAX_RANKS)
    show_batches(loaded)
    gpu_bytes = arguments.gpu_memory or gpu_memory_bytes(loaded.job)
    show_memory(loaded, gpu_bytes)
    return show_fit(loaded, gpu_bytes) if arguments.fit else OK


def show_sizes(job: Job) -> None:
    """Prints one line with the parallel sizes."""
    size = rank_layout.sizes(job)
    out.print(
        f"[bold]{job.name}[/]: {job.num_nodes} x {job.nproc_per_node} = {job.world_size} ranks = "
        f"tp {size.tensor} x cp {size.context} x dp {size.data} x pp {size.pipeline}"
    )


def show_ranks(job: Job, hf_config: Mapping[str, Any] | None, *, limit: int | None) -> None:
    """Prints each rank's layers, shard of the weights and shard of the data."""
    size = rank_layout.sizes(job)
    rows = rank_layout.ranks(job, rank_layout.num_layers(job, hf_config))
    has_experts = size.expert * size.expert_tensor > 1 or bool(job.args.num_experts)
    columns = ("rank", "node", "gpu", "tp", "cp", "dp", "pp", *(("ep", "etp") if has_experts else ()), "layers", "data")
    shown = table("layout", *columns)
    for row in rows[:limit]:
        shown.add_row(*_cells(row, size.data, has_experts=has_experts))
    show_table(shown)
    if limit is not None and len(rows) > limit:
        out.print(f"[dim]... {len(rows) - limit} more; --all-ranks lists them[/]")


def show_batches(loaded: Loaded) -> None:
    """Prints how samples become steps."""
    job = loaded.job
    assert job is not None
    size = rank_layout.sizes(job)
    length = derive.sequence_length(job.args, loaded.hf_config or {})
    items = "packed rows" if job.args.packing else "pairs" if job.task == "rlhf" else "samples"
    most_tokens = (length or 0) * job.args.global_batch_size * derive.sequences_per_item(job.args, job.task)
    rows = [
        ("micro-batch", f"{job.args.micro_batch_size} {items} a rank"),
        ("data parallel", f"{size.data} ranks"),
        ("micro-batches a step", str(derive.num_micro_batches(job.args, job.world_size))),
        ("global batch", f"{job.args.global_batch_size} {items} a step"),
        ("sequence length", "of the longest sample" if length is None else f"at most {length} tokens"),
        ("tokens a step", "" if length is None else f"at most {most_tokens}"),
        ("length of the run", _run_length(job)),
        ("learning rate", f"{derive.learning_rate(job.args):g}"),
        ("checkpoints", f"{_save_times(job)} to {job.save_directory}"),
    ]
    shown = table("batches", "", "")
    shown.show_header = False
    for label, value in rows:
        if value:
            shown.add_row(f"[dim]{label}[/]", value)
    show_table(shown)


def show_memory(loaded: Loaded, gpu_bytes: int | None) -> None:
    """Prints the GPU memory that each stage needs, and whether it fits."""
    assert loaded.job is not None
    if loaded.hf_config is None:
        out.print("[dim]memory: unknown, because the model's config.json cannot be read here[/]")
        return
    model = check(loaded.hf_config, loaded.job.args).model
    assert model is not None  # loading has rejected an invalid config.json
    estimate = memory.estimate(loaded.job.args, model, loaded.job.world_size, task=loaded.job.task)
    show_table(_memory_table(estimate))
    out.print(
        f"[dim]{estimate.num_parameters / 1e6:,.0f} M parameters, {estimate.num_trainable / 1e6:,.1f} M trainable, "
        f"{estimate.tokens} tokens per micro-batch and rank[/]"
    )
    if gpu_bytes is not None:
        out.print(_fits(estimate.peak, gpu_bytes))
    if loaded.job.checkpoint.memory is not None:
        out.print(_memory_checkpoints(loaded.job, estimate, str(loaded.job.checkpoint.memory.size_limit)))


def _size(text: str) -> int:
    """The bytes of a quantity on the command line."""
    try:
        return int(amount(text))
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


def _memory_table(estimate: MemoryEstimate) -> Table:
    has_reference = any(stage.reference for stage in estimate.stages)
    reference = ("reference",) if has_reference else ()
    parts = ("weights", *reference, "gradients", "optimizer", "activations", "logits", "overhead", "total")
    shown = table("memory of a rank, GiB (estimate)", "stage", *parts)
    for stage in estimate.stages:
        shown.add_row(str(stage.stage), *(f"{getattr(stage, part) / GIB:.2f}" for part in parts))
    return shown


def _fits(peak: RankMemory, gpu_bytes: int) -> str:
    need, have = peak.total / GIB, gpu_bytes / GIB
    if need <= have:
        return f"[green]fits[/]: {need:.1f} of {have:.0f} GiB"
    return (
        f"[red]does not fit[/]: {need:.1f} of {have:.0f} GiB; split the model further (tensor_model_parallel_size, "
        "pipeline_model_parallel_size), recompute (recompute_granularity full), or shorten max_length; --fit searches"
    )


def _memory_checkpoints(job: Job, estimate: MemoryEstimate, size_limit: str) -> str:
    """What checkpoints in memory need of a node, and whether the volume is as large."""
    places: list[list[Place]] = [[] for _ in range(job.num_nodes)]
    for rank in rank_layout.ranks(job, None):
        places[rank.node].append(Place(stage=rank.pipeline, is_first_copy=rank.data == rank.context == 0))
    size = rank_layout.sizes(job)
    need = of_nodes(job.args, estimate, places, num_copies=size.data * size.context)
    limit = int(amount(size_limit))
    verdict = "[green]fits[/]" if need.volume <= limit else "[red]does not fit[/]: raise checkpoint.memory.sizeLimit"
    return (
        f"checkpoints in memory: {need.volume / GIB:.2f} of {limit / GIB:.2f} GiB on a node, and "
        f"{need.staging / GIB:.2f} GiB of the trainer's own memory (estimate); {verdict}"
    )


def _cells(row: Rank, num_shards: int, *, has_experts: bool) -> list[str]:
    experts = [row.expert, row.expert_tensor] if has_experts else []
    numbers = [row.rank, row.node, row.local_rank, row.tensor, row.context, row.data, row.pipeline, *experts]
    layers = ", ".join(f"{first}-{end - 1}" if end > first else "none" for first, end in row.layers) or "?"
    return [*map(str, numbers), layers, f"{row.data + 1} of {num_shards}"]


def _save_times(job: Job) -> str:
    times = {"steps": f"every {job.args.save_interval} steps", "epoch": "after each epoch", "no": "at the end"}
    return times[job.args.save_strategy]


def _run_length(job: Job) -> str:
    epochs = "" if job.args.max_epochs is None else f"{job.args.max_epochs} epochs"
    steps = "" if job.args.train_iters is None else f"{job.args.train_iters} steps"
    return " or ".join(part for part in (steps, epochs) if part)


def gpu_memory_bytes(job: Job) -> int | None:
    """Memory of one GPU, from the node labels that the job's pods select by; None if none of them tells."""
    selector = _node_selector(job)
    if MEMORY_LABEL in selector:
        return int(selector[MEMORY_LABEL]) * MIB
    size = re.search(r"(\d+)GB", str(selector.get(PRODUCT_LABEL, "")))
    return int(size.group(1)) * GIB if size else None


def _node_selector(job: Job) -> Mapping[str, Any]:
    template = merged(job.pod_template, job.worker_template)
    selector: Mapping[str, Any] = template.get("spec", {}).get("nodeSelector") or {}
    return selector
