"""Layer parts that are missing or wrong in megatron-core's local implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from torch import Tensor

from megatron_trainer.megatron.marks import sum_over_sequence


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm as the Hugging Face models compute it: in float32, cast back, then scaled.

    megatron-core's wrapper of torch's norm refuses sequence parallelism. The mark on the weight has
    finalize_model_grads sum its gradient over the ranks that hold parts of the sequence. A zero-centered one scales by
    one plus its weight, in float32.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.is_zero_centered = config.layernorm_zero_centered_gamma
        start = 0.0 if self.is_zero_centered else 1.0
        self.weight = torch.nn.Parameter(torch.full((hidden_size,), start, dtype=config.params_dtype))
        sum_over_sequence(self.weight, is_summed=config.sequence_parallel)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized over the last dimension, in the type of x."""
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        if self.is_zero_centered:
            return ((1.0 + self.weight.float()) * normed).to(x.dtype)
        return self.weight * normed.to(x.dtype)


class UnitNorm(torch.nn.Module):
    """A root-mean-square norm without a weight, in float32."""

    def __init__(self, hidden_size: int, eps: float, **_: object) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalized over the last dimension, in the type of x."""
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class ReplicatedLinear(torch.nn.Module):
    """A linear that every tensor-parallel rank holds whole and applies to its part of the sequence.

    For the down projections of latent attention. megatron-core's local implementation shards them by
    column, and the gradient that comes back through its gather is wrong: the positional key feeds the local
    heads only.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], None] | None = None,
        **_: object,
    ) -> None:
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        sum_over_sequence(self.weight, is_summed=config.sequence_parallel)
        if config.perform_initialization and init_method is not None:
            init_method(self.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(x times the weight, no bias), as megatron-core's linears return it."""
        return torch.nn.functional.linear(x, self.weight), None


class OwnOutputLinear(RowParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """A linear whose output shares memory with nothing: megatron-core's experts add their bias to it in place.

    Where the linear is not sharded, its output is a view of another, and torch refuses to differentiate that.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(output, bias), as of the linear."""
        output, bias = super().forward(x)
        return output.clone(), bias


class AttentionOnPlainQueries(MLASelfAttention):  # type: ignore[misc]  # megatron-core has no types
    """Latent attention that compresses keys and values but not queries, as DeepSeek-V2-Lite.

    Without a compressed query, megatron-core would put its norm before the query projection, where the model has none.
    """

    def _resolve_qk_norm_config(self, submodules: MLASelfAttentionSubmodules) -> dict[str, Any]:
        return {
            "linear_q_proj": submodules.linear_q_proj,
            "linear_q_up_proj": IdentityOp,
            "linear_kv_up_proj": submodules.linear_kv_up_proj,
            "q_layernorm": IdentityOp,
            "kv_layernorm": submodules.kv_layernorm,
        }


class PostNormAdd(torch.nn.Module):
    """Normalizes the output of a block before it is added to the residual stream.

    Replaces the step in which megatron-core adds bias, dropout and residual, outside the preceding linear, so that an
    adapter on that linear is normalized with it.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:  # noqa: FBT001 - megatron's signature
        """The function that megatron-core calls with (output, bias), residual and dropout probability."""
        add: Callable[..., Tensor] = get_bias_dropout_add(training, fused)

        def norm_and_add(output_with_bias: tuple[Tensor, Tensor | None], *rest: Any) -> Tensor:  # noqa: ANN401
            output, bias = output_with_bias
            return add((self.norm(output if bias is None else output + bias), None), *rest)

        return norm_and_add


def with_bias(linear: Callable[..., torch.nn.Module], *, has_bias: bool = True) -> Callable[..., torch.nn.Module]:
    """The same builder, but the linear has a bias, or none, whatever the configuration says for all linears."""

    def build(*args: Any, **settings: Any) -> torch.nn.Module:  # noqa: ANN401
        return linear(*args, **{**settings, "bias": has_bias})

    return build
