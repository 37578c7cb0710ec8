"""Which micro-batch's features the first layers take while several are between their forward and backward pass."""

import torch
from torch import Tensor, nn

from megatron_trainer.models.deep_features import DeepFeatures


class Layer(nn.Module):
    def forward(self, hidden: Tensor, *, rotary_pos_emb: Tensor) -> tuple[Tensor, None]:
        return hidden * 2, None


def run(layer: Layer, deep: DeepFeatures, angles: Tensor, feature: Tensor | None = None) -> Tensor:
    """The output of one micro-batch, from hidden states of one."""
    hidden = torch.ones(1, requires_grad=True)
    with deep.forward_pass():
        hidden = hidden if feature is None else deep.attached(hidden, [feature])
        output: Tensor = layer(hidden, rotary_pos_emb=angles)[0]
        return output


def test_text_takes_no_features_of_images_whose_backward_pass_is_to_come():
    """In a pipeline the next micro-batch may get the memory of the angles of one whose backward pass is to come."""
    layer = Layer()
    deep = DeepFeatures([layer])
    angles = torch.zeros(1)
    feature = torch.full((1,), 5.0, requires_grad=True)
    with_images = run(layer, deep, angles, feature)
    text = run(layer, deep, angles)
    assert (with_images.item(), text.item()) == (7.0, 2.0)
    assert layer(torch.ones(1), rotary_pos_emb=angles)[0].item() == 2.0, "recomputed, the text has none either"
    with_images.backward()
    assert feature.grad is not None
    assert feature.grad.item() == 1.0
