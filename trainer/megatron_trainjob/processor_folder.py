"""Checks that the folder of a model with images has its image processor, without loading it.

The trainer loads it before it reads rows, also where these have only text; this can be checked before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_trainjob.tokenizer_folder import read_json

PROCESSOR_FILE, WHOLE_FILE = "preprocessor_config.json", "processor_config.json"
"""The image processor alone, and with what else prepares rows, as transformers 5 saves it."""
IMAGE_TOKENS = frozenset({"image_token_id", "image_token_index"})
"""Keys of config.json that name the token of an image; a file has one of them."""
_COPY = "copy the processor's files from where the model was published"


def problems(directory: Path, config: Mapping[str, Any]) -> list[str]:
    """Problems of the image processor in `directory`, with the remedy; empty for a text model. config: config.json."""
    if "vision_config" not in config or not IMAGE_TOKENS & config.keys():
        return []
    try:
        found = read_json(directory / PROCESSOR_FILE) or read_json(directory / WHOLE_FILE).get("image_processor")
    except ValueError as error:
        return [f"{error}; {_COPY}"]
    return [] if found else [f"has no image processor: {PROCESSOR_FILE} is missing; {_COPY}"]
