"""Parallel layouts in short words ("tp2 sp pp2 dp2"): those that every family is held to, those of four and eight."""

from __future__ import annotations

from typing import Any

from tests.support.models import tiny_model

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

OF_FOUR_AND_EIGHT = {
    "llama": ("tp4 sp", "pp4", "cp4", "dp4", "tp2 pp2 dp2", "tp2 cp2 dp2", "pp2 vpp2 dp2", "tp2 sp pp2 vpp2 dp2"),
    "qwen3_moe": ("ep4", "pp2 ep2", "ep2 pp2 dp2", "etp2 ep2 dp2", "tp2 sp pp2 etp1 ep2 dp2"),
}
"""Combinations for one machine of four or eight devices; dp counts the copies of everything else, experts included."""
LARGE_MODELS = {"llama": {"num_key_value_heads": 4}, "qwen3_moe": {"num_experts": 8}}
"""What these layouts need of a tiny model: a key head for each of four ranks, two experts each."""

Layout = dict[str, Any]
_SIZES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}


def read(text: str) -> Layout:
    """ "tp2 sp pp2 packed" -> arguments, and the three that are none: packed, virtual, copies (dp)."""
    found: Layout = {"packed": False, "virtual": None, "copies": 1, "arguments": {}}
    for word in text.split():
        if word == "sp":
            found["arguments"]["sequence_parallel"] = True
        elif word == "packed":
            found["packed"] = True
        elif word.startswith("vpp"):
            found["virtual"] = int(word[3:])
        elif word.startswith("dp"):
            found["copies"] = int(word[2:])
        else:
            name = word.rstrip("0123456789")
            found["arguments"][_SIZES[name]] = int(word[len(name) :])
    return found


def is_refused(name: str, layout: Layout) -> bool:
    """Whether this model is not trained in such a layout: neither a state nor attention with sinks is passed over
    context-parallel ranks, tensor ranks share the sequences of a state, and experts with biases are whole.
    """
    sizes = {key: layout["arguments"].get(name, 1) for key, name in _SIZES.items()}
    if name in tiny_model.SINK_MODELS and layout["arguments"].get(_SIZES["etp"], sizes["tp"]) > 1:
        return True
    if name in tiny_model.LINEAR_MODELS and sizes["tp"] > 1 and not layout["arguments"].get("sequence_parallel"):
        return True
    return name in tiny_model.LINEAR_MODELS | tiny_model.SINK_MODELS and sizes["cp"] > 1


def num_ranks(arguments: dict[str, Any]) -> int:
    tensor, pipeline, context = (arguments.get(_SIZES[name], 1) for name in ("tp", "pp", "cp"))
    expert = arguments.get(_SIZES["ep"], 1) * arguments.get(_SIZES["etp"], tensor)
    return pipeline * max(tensor * context, expert)


def of_run(text: str) -> tuple[dict[str, Any], int]:
    """Arguments and number of ranks of a training in this layout."""
    found = read(text)
    virtual = {"virtual_pipeline_model_parallel_size": found["virtual"]} if found["virtual"] else {}
    packed = {"packing": True} if found["packed"] else {}
    return {**found["arguments"], **virtual, **packed}, num_ranks(found["arguments"]) * found["copies"]


def takes_adapters(text: str) -> bool:
    """Adapters of experts need whole experts on each rank."""
    return read(text)["arguments"].get(_SIZES["etp"], 1) == 1
