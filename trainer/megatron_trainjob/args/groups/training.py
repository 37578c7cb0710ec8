"""Batches, recomputation, kernel fusions, optimizer precision, data loading: the basic settings of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class Training:
    """Batches, recomputation, kernel fusions, optimizer precision, data loading: the basic settings of a run."""

    micro_batch_size: int = arg(
        1,
        "Samples, or packed rows, that a data-parallel rank feeds through one forward and backward pass.",
        unit="samples",
        ge=1,
        featured=True,
        status="works",
    )
    global_batch_size: int = arg(
        16,
        (
            "Samples consumed by one optimizer step over all ranks; the number of micro-batches per step "
            "follows from it."
        ),
        unit="samples",
        ge=1,
        featured=True,
        status="works",
    )
    recompute_granularity: Literal["full", "selective", "none"] = arg(
        "selective",
        (
            'What is recomputed in the backward pass to save memory: "full" whole layers, "selective" '
            'the sub-modules in recompute_modules, "none" nothing.'
        ),
        featured=True,
        status="works",
    )
    recompute_method: Literal["uniform", "block"] | None = arg(
        None,
        (
            'Which layers full recomputation covers: "uniform" divides the stage into equal chunks, "block" '
            "takes the first layers of each stage."
        ),
        featured=True,
        status="works",
    )
    recompute_num_layers: int | None = arg(
        None,
        ('With "uniform" the layers per recomputed chunk, with "block" how many layers of each stage are recomputed.'),
        unit="layers",
        ge=1,
        featured=True,
        status="works",
    )
    recompute_modules: tuple[Literal["core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe"], ...] = arg(
        ("core_attn",),
        (
            "Sub-modules to recompute under selective recomputation. core_attn costs nothing with a fused attention "
            "kernel. layernorm leaves norms alone that are one module with TransformerEngine's linear."
        ),
        status="works",
    )
    deterministic_mode: bool = arg(
        False,
        "Use only deterministic kernels, so that two runs are bitwise identical; slower.",
        status="works",
    )
    train_iters: int | None = arg(
        None,
        "Optimizer steps of the whole run; unset: from max_epochs and the size of the data set.",
        unit="iterations",
        ge=1,
        featured=True,
        status="works",
    )
    log_interval: int = arg(
        5,
        "Steps between two records of metrics; the first and the last step have one too.",
        unit="iterations",
        ge=1,
        featured=True,
        aliases=("logging_steps",),
        status="works",
    )
    tensorboard_dir: str | None = arg(
        None,
        "Folder for TensorBoard event files; unset: {save}/runs.",
        status="works",
    )
    no_masked_softmax_fusion: bool = arg(
        False,
        "Disable the fused scale + mask + softmax kernel for attention scores.",
        inverted_aliases=("masked_softmax_fusion",),
        status="no effect",
        fulfilled=(True,),
        reason="the attention kernels used here have no such separate kernel, so it is off in any case",
    )
    no_bias_dropout_fusion: bool = arg(
        False,
        "Disable the fused bias + dropout kernel.",
        inverted_aliases=("bias_dropout_fusion",),
        status="works on GPU only",
        fulfilled=(True,),
    )
    no_bias_swiglu_fusion: bool = arg(
        False,
        "Disable the fused bias + SwiGLU kernel.",
        inverted_aliases=("bias_activation_fusion",),
        status="works on GPU only",
        fulfilled=(True,),
    )
    no_rope_fusion: bool = arg(
        False,
        "Disable the fused rotary-embedding kernel.",
        inverted_aliases=("apply_rope_fusion",),
        status="works on GPU only",
        fulfilled=(True,),
    )
    no_gradient_accumulation_fusion: bool = arg(
        False,
        "Disable fused accumulation of weight gradients in TransformerEngine's layers.",
        inverted_aliases=("gradient_accumulation_fusion",),
        status="works on GPU only",
        fulfilled=(True,),
    )
    cross_entropy_loss_fusion: bool | None = arg(
        None,
        (
            "Use a fused vocabulary-parallel cross-entropy; unset: Transformer Engine's where it is installed, except "
            "in deterministic mode."
        ),
        featured=True,
        status="works",
    )
    cross_entropy_fusion_impl: Literal["native", "te"] = arg(
        "native",
        'Implementation of the fused cross-entropy: Megatron-Core ("native") or Transformer Engine ("te").',
        status="works on GPU only",
    )
    calculate_per_token_loss: bool = arg(
        True,
        (
            "Divide the loss by the trained tokens of the whole global batch; false averages each micro-"
            "batch first. Preference training defaults to false and counts pairs."
        ),
        task_defaults={"rlhf": False},
        status="works",
    )
    attention_backend: Literal["flash", "fused", "unfused", "local", "auto"] = arg(
        "flash",
        'Attention kernels; "flash" is as "auto" without flash-attn, and for attention with sinks.',
        featured=True,
        status="works on GPU only",
    )
    optimizer: Literal["adam", "sgd", "muon", "dist_muon", "lion"] = arg(
        "adam",
        (
            '"adam" is AdamW with decoupled weight decay; "muon" orthogonalizes updates of matrices; "dist_muon" '
            "always spreads its state over data-parallel ranks, the others with use_distributed_optimizer."
        ),
        status="works",
    )
    optimizer_cpu_offload: bool = arg(
        False,
        "Keep the optimizer state in host memory and update there.",
        featured=True,
        status="works on GPU only",
    )
    optimizer_offload_fraction: float = arg(
        1.0,
        "Fraction of the optimizer state kept in host memory.",
        unit="fraction",
        ge=0,
        le=1,
        status="works on GPU only",
    )
    use_precision_aware_optimizer: bool = arg(
        False,
        ("Use the Transformer Engine optimizer, which can hold main parameters and moments in lower precision."),
        status="works on GPU only",
    )
    main_grads_dtype: Literal["fp32", "bf16"] = arg(
        "fp32",
        "Type of the main gradients under the precision-aware optimizer.",
        status="works on GPU only",
    )
    main_params_dtype: Literal["fp32", "fp16"] = arg(
        "fp32",
        (
            "Type of the main parameters under the precision-aware optimizer. A float32 one of a bfloat16 weight takes "
            "2 bytes: the 16 bits that the weight lacks (not with fp8_recipe tensorwise or blockwise)."
        ),
        status="works on GPU only",
    )
    exp_avg_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = arg(
        "fp32",
        "Storage type of the first Adam moment; the arithmetic stays in float32.",
        status="works on GPU only",
    )
    exp_avg_sq_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = arg(
        "fp32",
        "Storage type of the second Adam moment; the arithmetic stays in float32.",
        status="works on GPU only",
    )
    dataloader_type: Literal["single", "cyclic", "external"] = arg(
        "cyclic",
        (
            'Order of samples: "single" once in sequence, "cyclic" shuffled again each epoch, "external" '
            "as the stream gives them."
        ),
        status="works",
    )
    manual_gc: bool = arg(
        False,
        "Disable automatic garbage collection and collect on all ranks at the same step.",
        status="works",
    )
    manual_gc_interval: int = arg(
        0,
        "Steps between collections; 0: only around evaluation.",
        unit="iterations",
        ge=0,
        aliases=("manual_gc_steps",),
        status="works",
    )
    seed: int = arg(
        42,
        "Seed of Python, NumPy and PyTorch on every rank.",
        ge=0,
        le=4294967295,
        applies_to=EVERY_TASK,
        status="works",
    )
    num_workers: int = arg(
        4,
        "Data-loading processes per rank.",
        unit="processes",
        ge=0,
        featured=True,
        aliases=("dataloader_num_workers",),
        status="works",
    )
    seq_length: int | None = arg(
        None,
        "Alias of max_length, used if that is unset.",
        unit="tokens",
        ge=1,
        status="works",
    )
    use_cpu_initialization: bool = arg(
        False,
        "Initialize weights on the CPU.",
        applies_to=EVERY_TASK,
        status="works on GPU only",
    )
    extra_megatron_kwargs: Mapping[str, Any] | None = arg(
        None,
        (
            "Further fields of Megatron-Core's TransformerConfig and OptimizerConfig, passed on as they are: "
            "only what no argument stands for."
        ),
        aliases=("megatron_extra_kwargs",),
        status="works",
    )
