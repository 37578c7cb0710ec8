"""The definition of a model family, without tensors: the keys of config.json it reads and their meaning.

A family is a value. Adding one means adding a record in this package and listing it in __init__.py; its weight table is
in weights.py, under the same model_type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_trainjob.families.config import Config
from megatron_trainjob.families.model import Model
from megatron_trainjob.families.stacks import STACK_FORM, StackForm
from megatron_trainjob.families.vision import NESTED, Names
from megatron_trainjob.violation import Violation

_SHARED = ("tie_word_embeddings", "dtype", "torch_dtype")
"""Keys that may stand outside of the text model or in it."""
_OUTER = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "auto_map", "vision_config"),
        *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
        *("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"),
        *("image_seq_length", "downsample_ratio", "projector_hidden_act"),
        *("vision_feature_layer", "vision_feature_select_strategy"),
        *("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index", "audio_token_id"),
        *("boi_token_index", "eoi_token_index", "image_token_index"),
        *("audio_config", "vision_soft_tokens_per_image"),
        *_SHARED,
    }
)
"""Keys of a model with a vision tower that are not those of its text model."""


def nothing(_: Config) -> Iterable[Violation]:
    """Refuses nothing."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family.

    model_type: of config.json. title: its models, for the docs. keys: those of config.json that the family's code in
    transformers reads -> their defaults. aliases: other names of keys. build: makes the model from the keys. refuse:
    variants that would be computed differently from transformers. transformers_type: the model_type of that code if
    transformers uses another name. classifier: its class in transformers for sequence classification, "" if there is
    none. text_type: the model_type of the text model inside a model with a vision tower, "" for a text model.
    stored_type: the model_type of files that several records share, which differ in text_type; "" for model_type.
    vision_keys: those of its vision_config, as keys. file_names: how the tensors of its two parts are stored, () as in
    weight tables. object_names: those within transformers' object. cuts_images: into tiles of one size. scales_images:
    to a number of tokens, up or down. stacks_experts: the experts of a layer are stored in one tensor each, in the form
    `stack_form` (stacks.py). default_scaling: rotary scaling of a file that names none. has_mxfp4: the stacks are
    published in MXFP4 too. rotates_by_kind: rotary parts are given for each kind of layer, whose sizes may differ
    (per_layer_config).
    """

    model_type: str
    title: str
    keys: Mapping[str, Any]
    build: Callable[[Config], Model]
    refuse: Callable[[Config], Iterable[Violation]] = nothing
    aliases: Mapping[str, str] = field(default_factory=dict)
    transformers_type: str = ""
    classifier: str = ""
    text_type: str = ""
    stored_type: str = ""
    vision_keys: Mapping[str, Any] = field(default_factory=dict)
    file_names: Names = ()
    object_names: Names = NESTED
    cuts_images: bool = False
    scales_images: bool = False
    stacks_experts: bool = False
    stack_form: StackForm = STACK_FORM
    default_scaling: Mapping[str, Any] = field(default_factory=dict)
    has_mxfp4: bool = False
    rotates_by_kind: bool = False

    def config(self, raw: Mapping[str, Any]) -> Config:
        """The file's content as this family reads it."""
        return Config(raw=self.flat(raw), keys=self.keys, aliases=self.aliases, vision_keys=self.vision_keys)

    def flat(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """The file's content with the keys of the text model at the top, where the earlier files of the lineage have
        them.
        """
        raw = self._lifted(raw)
        if self.default_scaling and not raw.get("rope_scaling") and raw.get("rope_parameters") is None:
            return {**raw, "rope_scaling": dict(self.default_scaling)}
        return raw

    def _lifted(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        text = raw.get("text_config")
        if not self.text_type or not isinstance(text, Mapping):
            return raw
        outer = {key: value for key, value in raw.items() if key != "text_config"}
        shared = {
            key: text.get(key) if outer.get(key) is None else outer[key]
            for key in _SHARED
            if key in outer or key in text
        }
        return {**outer, **text, **shared, "model_type": self.model_type}

    def nested(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The same with the keys of the text model in an object of their own, as transformers writes it."""
        text = {key: value for key, value in flat.items() if key not in _OUTER}
        kinds = {key: flat[key] for key in ("dtype", "torch_dtype") if key in flat}
        outer = {key: value for key, value in flat.items() if key in _OUTER}
        outer |= {"model_type": self.stored_type} if self.stored_type and "model_type" in outer else {}
        return {**outer, "text_config": {**text, **kinds, "model_type": self.text_type}}

    def stored(self, raw: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
        """A file's content in its own form with what `flat` changes of it; all else as it stands, where it stands.

        A key outside of the text model and in it may have two values: transformers generates by the outer
        eos_token_id, and trains by the inner one.
        """
        text = raw.get("text_config")
        if not self.text_type or not isinstance(text, Mapping):
            return dict(flat)
        before, outer, inner = self.flat(raw), dict(raw), dict(text)
        changed = [key for key in {**before, **flat} if key not in flat or before.get(key, ...) != flat[key]]
        for key in changed:
            for part in [part for part in (outer, inner) if key in part] or [outer if key in _OUTER else inner]:
                part.pop(key, None)
                part.update({key: flat[key]} if key in flat else {})
        return {**outer, "text_config": inner}


def refused(key: str, value: object, message: str) -> Violation:
    """A setting of config.json that cannot be trained correctly."""
    return Violation(path=f"config.json:{key}", value=value, message=message)
