"""How the model and the data are split over ranks."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """How the model and the data are split over ranks."""

    distributed_backend: Literal["nccl", "gloo"] = arg(
        "nccl",
        "Collective library of GPU runs; CPU runs always use gloo.",
        aliases=("ddp_backend",),
        applies_to=EVERY_TASK,
        status="no effect",
        reason="the hardware decides it: nccl between GPUs, where gloo lacks what Megatron needs, and gloo on CPUs",
    )
    use_distributed_optimizer: bool = arg(
        True,
        "Shard the optimizer state over the data-parallel ranks (ZeRO stage 1).",
        featured=True,
        status="works",
    )
    tensor_model_parallel_size: int = arg(
        1,
        "Ranks that each weight matrix is sharded over.",
        unit="ranks",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    pipeline_model_parallel_size: int = arg(
        1,
        "Number of pipeline stages.",
        unit="ranks",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    virtual_pipeline_model_parallel_size: int | None = arg(
        None,
        "Chunks of layers per pipeline stage (interleaved schedule): smaller bubble, more communication.",
        unit="chunks",
        ge=1,
        status="works",
    )
    num_layers_per_virtual_pipeline_stage: int | None = arg(
        None,
        "Layers per virtual chunk, which determines the number of chunks.",
        unit="layers",
        ge=1,
        status="works",
    )
    pipeline_model_parallel_layout: str | None = arg(
        None,
        (
            "Parts of each chunk of each stage as a text such as Et*3|(tt|)*2mL: E embedding, t layer, m layer of "
            "multi-token prediction, L output and loss, | between chunks, *n and (..)*n repeat."
        ),
        status="works",
    )
    decoder_first_pipeline_num_layers: int | None = arg(
        None,
        "Layers on the first pipeline stage; unset: an even split.",
        unit="layers",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    decoder_last_pipeline_num_layers: int | None = arg(
        None,
        "Layers on the last pipeline stage; unset: an even split.",
        unit="layers",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    sequence_parallel: bool = arg(
        False,
        "Split norm and dropout activations along the sequence over the tensor-parallel ranks.",
        featured=True,
        status="works",
    )
    context_parallel_size: int = arg(
        1,
        "Ranks that each sequence is split over.",
        unit="ranks",
        ge=1,
        featured=True,
        status="works",
    )
    cp_comm_type: Literal["p2p", "all_gather", "a2a", "a2a+p2p"] = arg(
        "p2p",
        "How context-parallel ranks exchange keys and values.",
        status="no effect",
        reason=(
            "ranks pass them around a ring on GPUs (p2p) and gather them without; the others give the same result at "
            "another speed, and need rows or heads that all ranks divide"
        ),
    )
    tp_comm_overlap: bool = arg(
        False,
        "Overlap tensor-parallel communication with matrix products.",
        status="no effect",
        reason=(
            "it only affects speed, and TransformerEngine's communication buffers have a fixed row length, while "
            "rows here vary in length; overlap_grad_reduce and overlap_param_gather overlap other communication"
        ),
    )
    overlap_grad_reduce: bool = arg(
        False,
        "Overlap the reduction of gradients with the backward pass.",
        featured=True,
        status="works",
    )
    overlap_param_gather: bool = arg(
        False,
        "Overlap the gathering of updated parameters with the forward pass.",
        featured=True,
        status="works",
    )
    distributed_timeout_minutes: int = arg(
        300_000,
        "Process-group timeout in minutes, superseded by ddp_timeout.",
        unit="minutes",
        ge=1,
        status="no effect",
        reason="ddp_timeout (seconds) decides",
    )
