"""Parallel layouts in short words ("tp2 sp pp2 packed"), and those that every family is held to."""

from __future__ import annotations

from typing import Any

BASIC = ("tp1", "packed", "tp2", "tp2 sp", "pp2", "cp2", "cp2 packed")
DENSE = (
    "packed",
    "tp2",
    "tp2 sp",
    "pp2",
    "cp2",
    "cp2 packed",
    "tp2 pp2",
    "tp2 sp pp2 packed",
    "tp2 sp cp2 packed",
    "pp2 vpp2",
)
EXPERTS = (
    "packed",
    "tp2 sp etp1",
    "pp2",
    "cp2",
    "cp2 packed",
    "ep2",
    "tp2 sp pp2 etp1",
    "tp2 sp",
    "cp2 ep2",
    "pp2 ep2",
    "tp2 sp ep2 etp1",
    "tp2 sp ep2",
    "tp2 sp pp2 packed",
    "tp2 sp cp2 packed",
    "pp2 vpp2",
)

Layout = dict[str, Any]
_SIZES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}


def read(text: str) -> Layout:
    """ "tp2 sp pp2 packed" -> arguments, and the two that are none: packed, virtual."""
    found: Layout = {"packed": False, "virtual": None, "arguments": {}}
    for word in text.split():
        if word == "sp":
            found["arguments"]["sequence_parallel"] = True
        elif word == "packed":
            found["packed"] = True
        elif word.startswith("vpp"):
            found["virtual"] = int(word[3:])
        else:
            name = word.rstrip("0123456789")
            found["arguments"][_SIZES[name]] = int(word[len(name) :])
    return found


def num_ranks(arguments: dict[str, Any]) -> int:
    tensor, pipeline, context = (arguments.get(_SIZES[name], 1) for name in ("tp", "pp", "cp"))
    expert = arguments.get(_SIZES["ep"], 1) * arguments.get(_SIZES["etp"], tensor)
    return pipeline * max(tensor * context, expert)
