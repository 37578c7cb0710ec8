"""Keeps gradients flowing into recomputed layers when everything below them is frozen.

Megatron's recomputation is a custom autograd function: its outputs require a gradient only if one of its inputs does.
With frozen embeddings the first layers' inputs do not, and trainable parameters in those layers would silently get no
gradient.
"""

from __future__ import annotations

import torch

from megatron_trainer.lora.names import unwrapped


def let_gradients_through_embeddings(chunks: list[torch.nn.Module]) -> None:
    """Makes the output of frozen embeddings require a gradient; inputs of later stages always do."""
    for chunk in map(unwrapped, chunks):
        if chunk.pre_process and not any(p.requires_grad for p in chunk.embedding.parameters()):
            chunk.embedding.register_forward_hook(_require_gradient)


def _require_gradient(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_(True)
