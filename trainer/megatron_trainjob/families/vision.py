"""The vision tower of a model and how its output enters the decoder. Knows no tensors, ranks or arguments.

Units: a patch is the tower's input unit, merge_size x merge_size of them become one token of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

PREFIX = "visual."
"""Prefixes of the tower's parameters and tensors."""
ALIGNERS = (
    *("visual.merger.", "visual.deepstack_merger_list.", "visual.multi_modal_projector."),
    "visual.embed_vision.embedding_projection.",
)
"""Prefixes of the parts that turn the tower's states into embeddings of the decoder: the aligner."""

Names = tuple[tuple[str, str], ...]
"""Beginnings of names elsewhere, and those in weight tables; the first that fits counts."""
NESTED: Names = (("model.language_model.", "model."), ("model.visual.", PREFIX))
"""Of transformers' objects, and of files that are written like them."""
OF_PARTS: Names = (
    ("model.language_model.", "model."),
    ("model.vision_tower.", f"{PREFIX}vision_tower."),
    ("model.multi_modal_projector.", f"{PREFIX}multi_modal_projector."),
    ("model.embed_vision.", f"{PREFIX}embed_vision."),
)
"""Of objects that hold the tower and the aligner side by side."""
BESIDE: Names = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", f"{PREFIX}vision_tower."),
    ("vision_model.", f"{PREFIX}vision_model."),
    ("multi_modal_projector.", f"{PREFIX}multi_modal_projector."),
)
"""Of the files of such models, and of objects that hold a whole text model beside the two."""
MERGING = ("downsample.", "vision_model.vision_adapter.")
"""Beginnings of the names of a tower's tensors that see one state in place of several patches."""
OF_PATCHES = (*MERGING, "vision_model.patch_embedding.")
"""Those of its matrices that see no state in front of the patches or behind them."""
_TABLES = (
    *("pos_embed.weight", "position_embedding.weight", "position_embeddings", "cls_token"),
    *("position_embedding_table", "class_embedding", "positional_embedding_vlm"),
)
"""Ends of the names of tensors that are added to states, not multiplied with them."""
BOUNDS = ("input_min", "input_max", "output_min", "output_max")
"""Of what goes into a linear of a tower and comes out of it, where it has any."""
SCALES = ("std_bias", "std_scale")
"""By which a tower moves and scales its output, where it does."""
_FIXED = tuple(f".{name}" for name in (*BOUNDS, *SCALES))


@dataclass(frozen=True, kw_only=True)
class Vision:
    """A vision tower. Sizes are those of the tower, output_size is the decoder's hidden size.

    image_token, video_token: ids that stand for one merged patch of an image or a video; they may be the same, and
    video_token is -1 where no videos are read. tile:
    pixels along each side of the squares into which images are cut, 0 for images of any size. separates_tiles: tokens
    between the tiles say how they lie, and the tower takes the linear into the decoder apart. sections: channel pairs
    of a head that rotate by time, by row and by column; () if positions count tokens, as in text.
    interleaves_sections: they take turns channel by channel instead of
    following each other. tokens_per_second: distance of positions in time between two seconds of a video, 0 if every
    frame is one position. separates_frames: each frame of a video is an image of its own between texts. deep_layers:
    layers of the tower whose states are added to the outputs of the decoder's first layers, one each. pads_images: the
    tower takes rows of patches, padded to one length, with the column and the row of each patch. sees_whole: in layers
    of the decoder with a window, tokens of an image attend to the later ones of that image too. longest_side:
    patches along a side of an image for which the tower has positions, 0 for any number. layer_scale:
    initial factor on the outputs of its blocks, where it has one. modules: those that make up the tower, in weight
    tables. tensors: the names of the tower's tensors without PREFIX -> their shapes.
    """

    depth: int
    hidden_size: int
    width: int
    num_heads: int
    channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    output_size: int
    image_token: int
    video_token: int
    sections: tuple[int, ...]
    interleaves_sections: bool = False
    tokens_per_second: int = 0
    separates_frames: bool = False
    deep_layers: tuple[int, ...] = ()
    tile: int = 0
    separates_tiles: bool = False
    pads_images: bool = False
    sees_whole: bool = False
    longest_side: int = 0
    layer_scale: float = 1.0
    modules: tuple[str, ...] = ("visual",)
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def num_parameters(self) -> int:
        """All parameters of the tower and the aligner."""
        return sum(prod(shape) for name, shape in self.tensors.items() if not is_fixed(PREFIX + name))

    @property
    def patches_per_tile(self) -> int:
        """Patches of one tile; 0 for images of any size."""
        return (self.tile // self.patch_size) ** 2

    @property
    def states_per_patch(self) -> float:
        """States in the layers of the tower for one patch: each tile has one more, in front of its patches."""
        return 1 + 1 / self.patches_per_tile if self.tile else 1.0

    @property
    def patch_values(self) -> int:
        """Numbers of one patch in pixel_values."""
        return self.channels * self.temporal_patch_size * self.patch_size**2

    def num_aligner_parameters(self) -> int:
        """Those of the parameters that belong to the aligner."""
        return sum(prod(shape) for name, shape in self.tensors.items() if is_aligner(PREFIX + name))


def is_tower(name: str) -> bool:
    """Whether a parameter or module belongs to the tower or the aligner."""
    return name.startswith(PREFIX)


def is_aligner(name: str) -> bool:
    """Whether a parameter or module of the tower belongs to the aligner."""
    return f"{name}.".startswith(ALIGNERS)


def is_looked_up(name: str) -> bool:
    """Whether a tensor of the tower is added to states and multiplied with nothing."""
    return name.endswith(_TABLES)


def is_fixed(name: str) -> bool:
    """Whether a tensor of the tower is part of checkpoints and never trains."""
    return name.startswith(PREFIX) and name.endswith(_FIXED)
