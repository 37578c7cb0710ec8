"""What transformers says about a model with an adapter merged into it: logits, and the gradients of A and B.

For y = (W + s B A) x and G = dL/dW at the merged weight: dL/dB = s G A^T and dL/dA = s B^T G. No peft is involved, so
this holds for what peft cannot load, too.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.models import tiny_model
from tests.support.ranks.lora_ranks import token_ids

PREFIX = "base_model.model."
TIED = (f"{PREFIX}model.embed_tokens.weight", f"{PREFIX}lm_head.weight")
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def with_transformers(directory: Path, adapter: Path, folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(logits, gradients by the adapter's keys). folder: scratch."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    halves = load_file(adapter / "adapter_model.safetensors")
    modules = sorted({key.rsplit(".lora_", 1)[0].removeprefix(PREFIX) for key in halves})
    a, b = ({m: halves[f"{PREFIX}{m}.lora_{half}.weight"] for m in modules} for half in "AB")
    weights = load_file(directory / "model.safetensors")
    merged = {f"{m}.weight": weights[f"{m}.weight"] + scale * b[m] @ a[m] for m in modules}
    shutil.copytree(directory, folder / "merged")
    save_file({**weights, **merged}, folder / "merged" / "model.safetensors", metadata={"format": "pt"})
    logits, gradients = _run(folder / "merged", folder / "gradients")
    expected = {}
    for m in modules:
        expected[f"{PREFIX}{m}.lora_A.weight"] = scale * b[m].t() @ gradients[f"{m}.weight"]
        expected[f"{PREFIX}{m}.lora_B.weight"] = scale * gradients[f"{m}.weight"] @ a[m].t()
    return logits, by_shared_a(expected)


def by_shared_a(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of an A that several linears share is the sum over them; so is that of tied embeddings.

    PEFT trains two copies of tied embeddings when they are a module to save, and an A for each of q, k, v.
    """
    shared = {}
    for name, gradient in gradients.items():
        for parts in FUSED:
            group = [
                name.replace(f".{part}.", f".{other}.")
                for part in parts
                if f".{part}.lora_A" in name
                for other in parts
            ]
            if group:  # without values where keys are values too
                gradient = sum(gradients[other] for other in group if other in gradients)
        if name in TIED and all(other in gradients for other in TIED):
            gradient = sum(gradients[other] for other in TIED)
        shared[name] = gradient
    return shared


def _run(directory: Path, folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Gradients come out under the names that checkpoints use: transformers itself undoes its fusing of experts."""
    config = tiny_model.transformers_config(directory)
    given = {"config": config, "dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(directory, **given).train()
    ids = token_ids()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else 0)
    model.save_pretrained(folder)
    return logits.detach(), load_file(folder / "model.safetensors")
