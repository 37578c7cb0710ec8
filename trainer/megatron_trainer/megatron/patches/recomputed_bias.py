"""Feed-forward blocks with a bias, recomputed alone (`recompute_modules: [mlp]`): the bias is added inside.

megatron-core returns it beside the output, to be added together with the residual. A checkpointed function's results
belong to autograd, so that the parameter itself becomes a result of the forward pass; the backward pass then meets its
own node again in the recomputed graph and never ends.
"""

# ruff: noqa: ANN401 - values of megatron-core that are passed on as they are
from __future__ import annotations

from typing import Any


def install() -> None:
    """Wraps MLP.forward."""
    from megatron.core.transformer.mlp import MLP

    forward = MLP.forward

    def with_bias(self: Any, *args: Any, **settings: Any) -> Any:
        output, bias = forward(self, *args, **settings)
        if bias is None or not _is_recomputed(self.config):
            return output, bias
        return output + bias, None

    MLP.forward = with_bias


def _is_recomputed(config: Any) -> bool:
    return config.recompute_granularity == "selective" and "mlp" in (config.recompute_modules or ())
