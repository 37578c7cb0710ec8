"""What a pair of a query and a key costs over the heads of layers: products with the key, then with the value."""

from __future__ import annotations

from megatron_trainjob.families.model import Model


def of_far_pairs(model: Model) -> int:
    """In all layers with attention to every token before."""
    return sum(_of_layer(model, layer) for layer in model.all_layers if not _has_window(model, layer))


def of_near_pairs(model: Model) -> int:
    """In the layers in which a token attends to the last `window` tokens alone: of the pairs in that reach."""
    return sum(_of_layer(model, layer) for layer in model.all_layers if _has_window(model, layer))


def _of_layer(model: Model, layer: int) -> int:
    if model.is_linear(layer):
        return 0
    of_layer = model.at(layer)
    return model.num_heads * (of_layer.qk_head_size + of_layer.v_head_size)


def _has_window(model: Model, layer: int) -> bool:
    """One that predicts further on is like the last layer of the decoder."""
    return bool(model.window) and model.window_layers[min(layer, model.num_layers - 1)]
