"""Self-attention with our kernel of rotary embedding and without: `python -m tests.support.models.rotation_layer`.

Prints the largest difference of each case, outputs and gradients, relative to the largest without. On the CPU Triton
interprets the kernel (TRITON_INTERPRET=1), and the check that there is a GPU is left out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from megatron_trainer.megatron.patches import rotation
from tests.support.ranks import gpu_training

HEADS, GROUPS, SIZE, LENGTHS = 4, 2, 16, (5, 3, 8)

CASES = {
    "packed": {},
    "rows": {"is_packed": False},
    "packed, norms": {"has_norms": True},
    "rows, norms": {"is_packed": False, "has_norms": True},
    "packed, one layer recomputed": {"is_recomputed": True},
}
NOT_OURS = {
    "a layer without rotation": {"no_rope_freq": [1]},
    "three axes": {"mrope_section": [2, 3, 3]},
    "no fusion": {"apply_rope_fusion": False},
}


def layer(*, has_norms: bool, **settings: Any) -> Any:
    """A layer with the local attention, in float32."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_submodules
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.attention import SelfAttention
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_trainer.models.layers import RMSNorm
    from megatron_trainer.models.local_attention import CoreAttention

    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * SIZE,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
        qk_layernorm=has_norms,
    )
    parts: Any = get_gpt_layer_local_submodules().self_attention.submodules
    parts.core_attention = CoreAttention
    parts.q_layernorm = parts.k_layernorm = RMSNorm if has_norms else None
    groups = ProcessGroupCollection.use_mpu_process_groups()
    made = SelfAttention(config, parts, 1, AttnMaskType.causal, pg_collection=groups)
    for name, value in settings.items():
        setattr(config, name, value)
    return made


def outcome(attention: Any, *, is_packed: bool, is_recomputed: bool) -> list[Tensor]:
    """The output, and the gradients of the input and all parameters."""
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.packed_seq_params import PackedSeqParams

    torch.manual_seed(3)
    num_tokens = sum(LENGTHS)
    hidden = torch.randn(num_tokens, 1 if is_packed else 2, HEADS * SIZE, requires_grad=True)
    freqs = RotaryEmbedding(SIZE, 1.0, use_cpu_initialization=True).get_emb(max(LENGTHS) if is_packed else num_tokens)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds) if is_packed else None

    def run(hidden: Tensor, freqs: Tensor) -> Tensor:
        output: Tensor = attention(hidden, attention_mask=None, rotary_pos_emb=freqs, packed_seq_params=packed)[0]
        return output

    if is_recomputed:
        output: Any = torch.utils.checkpoint.checkpoint(run, hidden, freqs, use_reentrant=True)
    else:
        output = run(hidden, freqs)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in attention.parameters() if parameter.grad is not None]
    attention.zero_grad()
    return [output.detach(), hidden.grad, *gradients]  # type: ignore[list-item]


def differences(*, is_packed: bool = True, has_norms: bool = False, is_recomputed: bool = False) -> float:
    attention = layer(has_norms=has_norms, apply_rope_fusion=False)
    wanted = outcome(attention, is_packed=is_packed, is_recomputed=is_recomputed)
    attention.config.apply_rope_fusion = True
    with mock.patch.object(rotation, "_start", wraps=rotation._start) as started:
        found = outcome(attention, is_packed=is_packed, is_recomputed=is_recomputed)
    assert started.call_count == 2 + is_recomputed
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, wanted, strict=True))


def is_left_alone(**settings: Any) -> bool:
    """Whether megatron-core rotates, or nothing does, in a layer with these settings."""
    attention = layer(has_norms=False, **{"apply_rope_fusion": True, **settings})
    given = {"rotary_pos_emb": torch.zeros(8, 1, 1, SIZE)}
    return not rotation.takes(attention, torch.zeros(8, 1, HEADS * SIZE), given)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, gpu_training.single_rank(Path(folder) / "store"):
        from megatron.core import parallel_state, tensor_parallel

        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        rotation.install()
        with mock.patch.object(rotation, "fits", return_value=True):
            errors: dict[str, float] = {name: differences(**case) for name, case in CASES.items()}
            errors |= {name: float(not is_left_alone(**case)) for name, case in NOT_OURS.items()}
    print(json.dumps(errors))
