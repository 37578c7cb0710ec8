"""A language model that sees images: features of a vision tower replace the embeddings of image tokens.

Shape suffixes: B rows, T tokens of this context rank, H hidden, F features (one for each image token of the whole row).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from megatron.core.transformer.multi_token_prediction import roll_tensor
from torch import Tensor, nn

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.models import whole_images
from megatron_trainer.models.deep_features import DeepFeatures
from megatron_trainer.models.prediction import PredictingModel
from megatron_trainer.models.tower import features
from megatron_trainjob.families.vision import Vision


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """The images of a micro-batch, and what each token of this context rank takes from them.

    pixel_values, grid_thw, pixel_values_videos, video_grid_thw: as in MicroBatch, None without any.
    feature_BT: int64, the index of the feature that replaces the token's embedding, images before videos; -1 for text.
    num_places: tokens of images and videos of the whole row.
    position_ids_3BT: by time, row and column; of the whole row where rows are packed, else of this rank's tokens. A
    model whose positions count tokens does not read them.
    mask: stands in for that of the micro-batch where tokens of images see their whole image (whole_images.py), else
    None.
    """

    pixel_values: Tensor | None
    grid_thw: Tensor | None
    pixel_values_videos: Tensor | None
    video_grid_thw: Tensor | None
    feature_BT: Tensor
    num_places: int
    position_ids_3BT: Tensor
    mask: Tensor | None = None


def image_inputs(whole: MicroBatch, batch: MicroBatch, vision: Vision) -> ImageInputs:
    """The images of the micro-batch `whole`, of which `batch` is this context rank's part."""
    places_BT = features_of_tokens(whole.tokens_BT, vision)
    rotated = whole if whole.cu_seqlens is not None else batch
    places_3BT = rotated.mrope_position_ids_3BT
    if places_3BT is None:
        places_3BT = rotated.position_ids_BT.expand(3, -1, -1)
    num_places = int(places_BT.max()) + 1
    return ImageInputs(
        pixel_values=whole.pixel_values,
        grid_thw=whole.grid_thw,
        pixel_values_videos=whole.pixel_values_videos,
        video_grid_thw=whole.video_grid_thw,
        feature_BT=parallel.local_tokens(whole, places_BT),
        num_places=num_places,
        position_ids_3BT=places_3BT,
        mask=_mask(whole, batch, places_BT >= 0) if vision.sees_whole and num_places else None,
    )


def _mask(whole: MicroBatch, batch: MicroBatch, is_image_BS: Tensor) -> Tensor:
    last_BS = whole_images.last_seen(is_image_BS, whole.cu_seqlens)
    return last_BS if batch.attention_mask is None else whole_images.opened(batch.attention_mask, last_BS)


def features_of_tokens(tokens_BT: Tensor, vision: Vision) -> Tensor:
    """int64 [B, T]: for each image or video token the number of its feature, all images before all videos; else -1."""
    image_BT, video_BT = tokens_BT == vision.image_token, tokens_BT == vision.video_token
    number_BT = (image_BT.flatten().cumsum(0) - 1).view_as(tokens_BT)
    behind_BT = (video_BT.flatten().cumsum(0) - 1 + image_BT.sum()).view_as(tokens_BT)
    return torch.where(image_BT, number_BT, torch.where(video_BT, behind_BT, -1))


class ImageTextModel(PredictingModel):
    """A GPTModel with a vision tower, `visual`, on its first stage. vision: the facts about the tower."""

    def __init__(self, *args: Any, vision: Vision, tower: nn.Module | None, **settings: Any) -> None:  # noqa: ANN401
        kind = "mrope" if vision.sections else "rope"
        super().__init__(*args, scatter_embedding_sequence_parallel=False, position_embedding_type=kind, **settings)
        self.vision = vision
        if tower is not None:
            self.visual = tower
        first = self.decoder.layers[: len(vision.deep_layers)] if self.pre_process else []
        self.deep_features = DeepFeatures(list(first))

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        images: ImageInputs | None = None,
        padding_mask: Tensor | None = None,
        **settings: Any,  # noqa: ANN401 - megatron's signature
    ) -> Tensor:
        """As GPTModel; without images, position_ids [B, T] count the tokens of the whole row.

        Raises:
            ValueError: there are more or fewer image tokens than features.
        """
        position_ids_3BT = position_ids.expand(3, -1, -1) if images is None else images.position_ids_3BT
        if images is not None and images.mask is not None:
            attention_mask = images.mask
        decoder_input = None
        if self.pre_process:
            decoder_input, features_FH = self._embedded(input_ids, position_ids, images)
            self.later_embedding = self._later(images, features_FH, settings.get("packed_seq_params"))
            if padding_mask is not None and self.config.sequence_parallel:
                size = parallel_state.get_tensor_model_parallel_world_size()
                rank = parallel_state.get_tensor_model_parallel_rank()
                padding_mask = padding_mask.chunk(size, dim=1)[rank].contiguous()
        with self.deep_features.forward_pass():
            output: Tensor = super().forward(
                input_ids,
                position_ids_3BT,
                attention_mask,
                decoder_input=decoder_input,
                padding_mask=padding_mask,
                **settings,
            )
        self.later_embedding = None
        return output

    def _embedded(
        self, input_ids: Tensor, position_ids: Tensor, images: ImageInputs | None
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [T, B, H], under sequence parallelism this rank's part of T, and the features of images."""
        hidden_TBH: Tensor = self.embedding(input_ids=input_ids, position_ids=position_ids)
        found = self._features(images)
        _check_count(input_ids, images, found, self.vision)
        deep_TBH: list[Tensor] = []
        features_FH: Tensor | None = None
        if found and (images is None or not _given(images)):
            hidden_TBH = hidden_TBH + 0.0 * sum(each_FH.sum() for each_FH in found)
        elif found and images is not None:
            features_FH, *deep_FH = (each.to(hidden_TBH.dtype) for each in found)
            hidden_TBH = _replaced(hidden_TBH, features_FH, images)
            deep_TBH = [_replaced(torch.zeros_like(hidden_TBH), each_FH, images) for each_FH in deep_FH]
        if self.config.sequence_parallel:
            hidden_TBH, *deep_TBH = (
                scatter_to_sequence_parallel_region(each, group=self.pg_collection.tp)
                for each in (hidden_TBH, *deep_TBH)
            )
        return (self.deep_features.attached(hidden_TBH, deep_TBH) if deep_TBH else hidden_TBH), features_FH

    def _later(
        self, images: ImageInputs | None, features_FH: Tensor | None, packed: PackedSeqParams | None
    ) -> Callable[..., Tensor]:
        """The embedding that multi-token prediction calls with the tokens one place further each time."""
        number_BT = None if images is None else images.feature_BT + 1  # what moves in from behind is 0: text

        def embed(input_ids: Tensor, position_ids: Tensor) -> Tensor:
            nonlocal number_BT
            hidden_TBH: Tensor = self.embedding(input_ids=input_ids, position_ids=position_ids)
            if features_FH is not None and images is not None and number_BT is not None:
                number_BT, _ = roll_tensor(number_BT, packed_seq_params=packed)
                hidden_TBH = _replaced(hidden_TBH, features_FH, replace(images, feature_BT=number_BT - 1))
            if self.config.sequence_parallel:
                hidden_TBH = scatter_to_sequence_parallel_region(hidden_TBH, group=self.pg_collection.tp)
            return hidden_TBH

        return embed

    def _features(self, images: ImageInputs | None) -> list[Tensor]:
        """The tower's output for all images, then all videos, and of the same form its deep features; none without
        images, if the tower does not train.
        """
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.visual.parameters())
        given = [] if images is None else _given(images)
        if not given and trains:
            given = [self._blank()]
        with torch.set_grad_enabled(trains):
            parts = [features(self.visual, self.vision, pixels, grid) for pixels, grid in given]
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def _blank(self) -> tuple[Tensor, Tensor]:
        """One black image, run where there is none: every parameter that trains takes part in every backward pass, as
        overlapped reductions of gradients need.
        """
        like = next(self.visual.parameters())
        side = self.vision.tile // self.vision.patch_size or self.vision.merge_size
        pixels = torch.zeros(side**2, self.vision.patch_values, dtype=like.dtype, device=like.device)
        return pixels, torch.tensor([[1, side, side]], device=like.device)


def _check_count(tokens_BT: Tensor, images: ImageInputs | None, found: list[Tensor], vision: Vision) -> None:
    """Raises ValueError unless there is a feature for each token of an image or video, and no other."""
    if images is None:
        places = features_of_tokens(tokens_BT, vision)
        count = int(places.max()) + 1
    else:
        count = images.num_places
    features = len(found[0]) if found and images is not None and _given(images) else 0
    if count != features:
        message = f"{count} tokens stand for images and videos, of which there are features for {features}"
        raise ValueError(message)


def _given(images: ImageInputs) -> list[tuple[Tensor, Tensor]]:
    pairs = (
        (images.pixel_values, images.grid_thw),
        (images.pixel_values_videos, images.video_grid_thw),
    )
    return [(pixels, grid) for pixels, grid in pairs if pixels is not None and grid is not None]


def _replaced(hidden_TBH: Tensor, features_FH: Tensor, images: ImageInputs) -> Tensor:
    """The hidden states with those of image tokens replaced by features."""
    feature_TB = images.feature_BT.t().contiguous()  # routers need the states of several rows in this order
    taken_TBH = features_FH[feature_TB.clamp(min=0)]
    return torch.where((feature_TB >= 0)[..., None], taken_TBH, hidden_TBH)
