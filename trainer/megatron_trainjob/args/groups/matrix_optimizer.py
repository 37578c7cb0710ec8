"""Muon and Lion: optimizers of whole matrices and of signs, from emerging-optimizers."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class MatrixOptimizer:
    """Muon (weight matrices; embeddings, output layer, biases and norms keep AdamW) and Lion."""

    muon_momentum: float = arg(
        0.9,
        "Decay of Muon's momentum.",
        ge=0,
        lt=1,
        status="works",
    )
    muon_split_qkv: bool = arg(
        True,
        "Orthogonalize queries, keys and values separately, though they are one matrix.",
        inverted_aliases=("muon_no_split_qkv",),
        status="works",
    )
    muon_use_nesterov: bool = arg(
        False,
        "Use Nesterov momentum in Muon.",
        aliases=("muon_nesterov",),
        status="works",
    )
    muon_scale_mode: Literal["spectral", "unit_rms_norm", "shape_scaling"] = arg(
        "spectral",
        (
            "Factor of an orthogonalized update of m rows and n columns: spectral max(m, n)^0.5, unit_rms_norm "
            "(m / n)^0.5, shape_scaling max(1, m / n)^0.5."
        ),
        status="works",
    )
    muon_fp32_matmul_prec: Literal["low", "medium", "high", "highest"] = arg(
        "medium",
        "torch's matrix-product precision in the orthogonalization.",
        status="works",
    )
    muon_num_ns_steps: int = arg(
        5,
        "Newton-Schulz steps of the orthogonalization.",
        ge=1,
        status="works",
    )
    muon_tp_mode: Literal["blockwise", "duplicated", "distributed"] = arg(
        "blockwise",
        (
            "How tensor-parallel ranks orthogonalize a sharded matrix: blockwise each its shard (another update than "
            "one rank's), duplicated the gathered matrix, distributed together."
        ),
        status="works",
    )
    muon_extra_scale_factor: float = arg(
        1.0,
        "An additional factor of Muon's updates; 0.2 matches the magnitude of AdamW's.",
        gt=0,
        status="works",
    )
    lion_beta1: float = arg(
        0.95,
        "Weight of Lion's momentum in the sign of an update.",
        ge=0,
        lt=1,
        status="works",
    )
    lion_beta2: float = arg(
        0.98,
        "Decay of Lion's momentum.",
        ge=0,
        lt=1,
        status="works",
    )
