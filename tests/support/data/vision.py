"""A tiny model folder that sees: tokenizer, template, image processor and config of the families with images."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
TILE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<ref>", "</ref>", "<box>", "</box>")
TILE_NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TILE_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML that writes images and videos as the published models of InternVL do."""
GLM_TOKENS = (
    "<|begin_of_image|>",
    "<|image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|video|>",
    "<|end_of_video|>",
)
GLM_TEMPLATE = TILE_TEMPLATE.replace("<IMG_CONTEXT>\n", "".join(GLM_TOKENS[:3])).replace(
    "<video>\n", "".join(GLM_TOKENS[3:])
)
"""The same as those of GLM-4.1V do."""
GEMMA_NAMES = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
GEMMA_TOKENS = ("<bos>", "<|turn>", "<turn|>", *GEMMA_NAMES.values(), "<|video|>")
GEMMA_PROCESSOR = {
    "image_processor_type": "Gemma4ImageProcessor",
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "max_soft_tokens": 70,
}
CANVAS_TOKENS = (
    *("<|image_start|>", "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image_end|>"),
)
CANVAS_TEMPLATE = TILE_TEMPLATE.replace("<IMG_CONTEXT>\n", "<|image|>")
"""Images as the published models of Llama-4 write them."""
CANVAS_PROCESSOR = {
    "image_processor_type": "Llama4ImageProcessor",
    "size": {"height": 16, "width": 16},
    "max_patches": 6,
    "image_mean": [0.5, 0.48, 0.4],
    "image_std": [0.5, 0.3, 0.27],
}
TEMPLATES = {
    "gemma4": "gemma4_v5",
    "gemma4_v2": "gemma4_v2",
    **dict.fromkeys(("qwen2_5_vl", "qwen2_vl"), "qwen2_5_vl"),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), "qwen3_vl"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), "qwen3_5_nothink"),
}
"""By model_type: the file among TRL's copies of the templates of published models."""


TILE_PROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessor",
    "size": {"height": 16, "width": 16},
    "crop_to_patches": False,
    "max_patches": 6,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@cache
def tokenizer(kind: str = "qwen2_5_vl") -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the added tokens and chat template of the family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if is_gemma(kind):
        around = {"bos_token": "<bos>", "eos_token": "<turn|>", "pad_token": "<|endoftext|>"}
        whole = PreTrainedTokenizerFast(tokenizer_object=made, **around, extra_special_tokens=GEMMA_NAMES)
        whole.add_special_tokens({"additional_special_tokens": list(GEMMA_TOKENS)})
        whole.chat_template = template(kind)
        return whole
    names = {"extra_special_tokens": TILE_NAMES} if is_cut(kind) else {}
    whole = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", **names)
    if is_cut(kind):
        whole.add_special_tokens({"additional_special_tokens": [*TOKENS[:3], *TILE_TOKENS]})
        whole.chat_template = TILE_TEMPLATE
        return whole
    if kind == "llama4":
        whole.add_special_tokens({"additional_special_tokens": [*TOKENS[:3], *CANVAS_TOKENS]})
        whole.chat_template = CANVAS_TEMPLATE
        return whole
    if kind.startswith("glm4v"):
        whole.add_special_tokens({"additional_special_tokens": [*TOKENS[:3], *GLM_TOKENS]})
        whole.chat_template = GLM_TEMPLATE
        return whole
    whole.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    whole.chat_template = template(kind)
    return whole


def template(kind: str) -> str:
    """The chat template of published models of this kind."""
    return files("trl").joinpath(f"chat_templates/{TEMPLATES[kind]}.jinja").read_text()


def is_gemma(kind: str) -> bool:
    """Whether models of this kind scale images to a number of tokens."""
    return kind.startswith("gemma4")


def is_cut(kind: str) -> bool:
    """Whether models of this kind cut images into tiles."""
    return kind.startswith("internvl")


def config(kind: str = "qwen2_5_vl") -> dict[str, object]:
    """The keys of config.json that the data side reads."""
    ids = tokenizer(kind).get_vocab()
    if is_cut(kind):
        sizes = {"image_size": [16, 16], "patch_size": [4, 4]}
        return {"model_type": kind, "vision_config": sizes, "image_token_id": ids["<IMG_CONTEXT>"]}
    if is_gemma(kind):
        named = {f"{name}_id": ids[text] for name, text in GEMMA_NAMES.items()}
        sizes = {"patch_size": 4, "pooling_kernel_size": 2}
        return {"model_type": "gemma4", "vision_config": sizes, **named, "video_token_id": ids["<|video|>"]}
    if kind == "llama4":
        sizes = {"image_size": 16, "patch_size": 4}
        return {"model_type": kind, "vision_config": sizes, "image_token_index": ids["<|patch|>"]}
    if kind.startswith("glm4v"):
        start, image, end, _, video, _ = (ids[token] for token in GLM_TOKENS)
        around = {"image_start_token_id": start, "image_end_token_id": end}
        return {"model_type": kind, "vision_config": {}, "image_token_id": image, "video_token_id": video, **around}
    return {
        "model_type": kind,
        "vision_config": {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def write(folder: Path, kind: str = "qwen2_5_vl", *, least: int = 64, most: int = 64 * 64) -> Path:
    """Tokenizer, config.json and preprocessor_config.json: patches of 4 x 4 pixels, merged 2 x 2."""
    tokenizer(kind).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config(kind)))
    if is_cut(kind):
        (folder / "preprocessor_config.json").write_text(json.dumps(TILE_PROCESSOR))
        return folder
    if is_gemma(kind):
        (folder / "preprocessor_config.json").write_text(json.dumps(GEMMA_PROCESSOR))
        return folder
    if kind == "llama4":
        (folder / "preprocessor_config.json").write_text(json.dumps(CANVAS_PROCESSOR))
        return folder
    settings = {
        "image_processor_type": "Glm4vImageProcessor" if kind.startswith("glm4v") else "Qwen2VLImageProcessor",
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def processor(folder: Path, kind: str = "qwen2_5_vl"):
    """transformers' own processor of the folder, the truth of the tests; its class needs torchvision for videos."""
    pytest.importorskip("torchvision")
    from transformers import (
        AutoImageProcessor,
        Gemma4AudioFeatureExtractor,
        Gemma4Processor,
        Gemma4VideoProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
        InternVLProcessor,
        InternVLVideoProcessor,
        Llama4Processor,
        Qwen2_5_VLProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    kinds = {"qwen2_5_vl": Qwen2_5_VLProcessor, "qwen2_vl": Qwen2VLProcessor}
    own = AutoTokenizer.from_pretrained(folder)
    if kind == "llama4":
        images = AutoImageProcessor.from_pretrained(folder)
        return Llama4Processor(image_processor=images, tokenizer=own, patch_size=4, chat_template=own.chat_template)
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    if is_cut(kind):
        sizes = {key: TILE_PROCESSOR[key] for key in ("size", "image_mean", "image_std")}
        return InternVLProcessor(
            image_processor=images,
            tokenizer=own,
            video_processor=InternVLVideoProcessor(**sizes),
            image_seq_length=4,
            chat_template=own.chat_template,
        )
    if is_gemma(kind):
        return Gemma4Processor(
            feature_extractor=Gemma4AudioFeatureExtractor(),
            image_processor=images,
            tokenizer=own,
            video_processor=Gemma4VideoProcessor(patch_size=4, pooling_kernel_size=2),
            chat_template=own.chat_template,
        )
    if kind.startswith("glm4v"):
        film = Glm4vVideoProcessor(patch_size=4, temporal_patch_size=2, merge_size=2)
        return Glm4vProcessor(
            image_processor=images, tokenizer=own, video_processor=film, chat_template=own.chat_template
        )
    videos = Qwen2VLVideoProcessor if kind in kinds else Qwen3VLVideoProcessor
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": dict(images.size)}
    colors = {"image_mean": images.image_mean, "image_std": images.image_std}
    return kinds.get(kind, Qwen3VLProcessor)(
        image_processor=images,
        tokenizer=own,
        video_processor=videos(**sizes, **colors, do_sample_frames=False),
        chat_template=own.chat_template,
    )


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colors, different for each seed."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin((rows * (seed + k + 1) + columns * (k + 2)) / (7 + k)) for k in range(3)]
    return Image.fromarray(((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8))


def save(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A picture as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(width, height, seed).save(path)
    return path
