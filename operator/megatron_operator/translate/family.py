"""Says whether the model of a command can be trained here: by its config.json where this machine has one, else by name.

Looks into the folder that the command names and into the cache of the Hub, never into the network. A name that is not
known says nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_trainjob import input_file
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES, untrained
from megatron_trainjob.violation import Violation

CONFIG = "config.json"
IN_CONFIG = "config.json:"
"""Start of the paths of problems that no argument can change."""
LISTED = "docs/families.md lists what is"
# Names of models -> their model_type. The first that matches counts: a name may contain that of an older lineage.
TYPES_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"gpt-?oss", "gpt_oss"),
    (r"Llama-?4", "llama4"),
    (r"Qwen3-?Next|Qwen3-Coder-Next", "qwen3_next"),
    (r"Qwen3-Omni", "qwen3_omni_moe"),
    (r"Qwen2\.5-Omni", "qwen2_5_omni"),
    (r"Qwen3\.[5-9].*-A\d+B", "qwen3_5_moe"),
    (r"Qwen3\.[5-9]", "qwen3_5"),
    (r"Qwen3-VL.*-A\d+B", "qwen3_vl_moe"),
    (r"Qwen3-VL", "qwen3_vl"),
    (r"Qwen2\.5-VL", "qwen2_5_vl"),
    (r"Qwen2-VL", "qwen2_vl"),
    (r"InternVL", "internvl"),
    (r"InternLM2", "internlm2"),
    (r"Ovis", "ovis"),
    (r"GLM-4\.1V|GLM-4\.6V-Flash", "glm4v"),
    (r"GLM-4\.\dV|GLM-4\.5-?V", "glm4v_moe"),
    (r"GLM-5", "glm_moe_dsa"),
    (r"Kimi-VL", "kimi_vl"),
    (r"Kimi-K2\.[5-9]", "kimi_k25"),
    (r"Kimi-Linear", "kimi_linear"),
    (r"DeepSeek-V3\.2", "deepseek_v32"),
    (r"DeepSeek-V4", "deepseek_v4"),
    (r"MiniMax-M2", "minimax_m2"),
    (r"MiniMax", "minimax"),
    (r"Nemotron-?(H|3|Nano)", "nemotron_h"),
    (r"gemma-?4", "gemma4"),
    (r"gemma-?3n", "gemma3n"),
    (r"gemma-?3", "gemma3"),
    (r"gemma-?2", "gemma2"),
    (r"gemma", "gemma"),
    (r"Phi-3\.5-MoE|Phi-mini-MoE", "phimoe"),
    (r"ERNIE-4\.5-VL", "ernie4_5_moe_vl"),
    (r"ERNIE-4\.5.*-A\d+B", "ernie4_5_moe"),
    (r"OLMoE", "olmoe"),
    (r"Hunyuan.*-A\d+B", "hunyuan_v1_moe"),
    (r"Hunyuan", "hunyuan_v1_dense"),
)


_ENDINGS = (("OpenGVLab/InternVL3-", "-hf"), ("OpenGVLab/InternVL3_5-", "-HF"))
"""Repositories of models in their first form -> the ending of those that hold the same for transformers."""


def ending_of_transformers(model: str) -> str:
    """What stands behind the name of a repository that holds the same model for transformers; "" for any other."""
    if model.lower().endswith("-hf"):
        return ""
    return next((ending for start, ending in _ENDINGS if model.startswith(start)), "")


def problem(model: str) -> str:
    """Why this model is not trained here, "" if it is or if nothing is known about it."""
    found = next(_configs(model), None) if model else None
    if found is not None:
        path, config = found
        wrong = [each for each in check(config, TrainArgs()).violations if each.path.startswith(IN_CONFIG)]
        return f"the trainer refuses it: {path}: {'; '.join(map(_said, wrong))}" if wrong else ""
    name = model.rstrip("/").rpartition("/")[2]
    kind = next((kind for pattern, kind in TYPES_BY_NAME if re.search(pattern, name, re.IGNORECASE)), None)
    if reason := untrained.by_name(name) or untrained.REASONS.get(str(kind)):
        return f"by its name this model cannot be trained: {reason}; {LISTED}"
    if kind is None or kind in FAMILIES:
        return ""
    return f"by its name it is of the family {kind}, which is not trained here; {LISTED}"


def _said(violation: Violation) -> str:
    name = violation.path.removeprefix(IN_CONFIG)
    if name == "model_type" and violation.value not in untrained.REASONS:
        return f"model_type {violation.value} is not trained here; {LISTED}"
    return f"{name}: {violation.message}"


def _configs(model: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The config.json files of the model on this machine, that of its folder first."""
    for path in (Path(model).expanduser() / CONFIG, *_cached(model)):
        try:
            content = input_file.read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(content, Mapping):
            yield path, content


def _cached(model: str) -> Iterator[Path]:
    """The files of a repository in the cache of the Hub's client, the newest first."""
    if model.count("/") != 1:
        return
    variables = os.environ  # noqa: TID251 (the Hub's client has its cache where this shell says)
    home = Path(variables.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(variables.get("HF_HUB_CACHE") or home / "hub")
    found = (cache / f"models--{model.replace('/', '--')}" / "snapshots").glob(f"*/{CONFIG}")
    yield from sorted(found, key=lambda path: path.parent.lstat().st_mtime_ns, reverse=True)
