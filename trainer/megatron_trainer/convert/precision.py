"""Compares a converted model with its counterpart: logits of a prompt, and the outputs of every layer.

Both models run in this process, one after the other. Shape suffixes: B batch of one, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from megatron_trainer import model_source
from megatron_trainer.convert import table
from megatron_trainer.convert.stream import Read
from megatron_trainer.failure import InvalidInput
from megatron_trainer.models.spec import ModelSpec
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.families import FAMILIES

TEXT = (
    "The mill stands where the river bends. Every morning at six the miller opens the gate, and by noon he has ground "
    "240 kg of rye. What will he do when the water is low? He waits: 3 days, perhaps 4."
)
RANDOM_TOKENS = 64
EMBEDDING, LAST_NORM, LOGITS = "embedding", "final norm", "logits"

Outputs = Mapping[str, Tensor]
"""By part of the model, in order: embedding, layer 0 .., final norm [B, T, H]; logits [B, T, V]; float32, CPU."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The tolerance. mean: mean difference of logits. layer: a layer's largest difference over its largest value."""

    mean: float
    layer: float


BOUNDS = {
    torch.float32: Bound(mean=1e-4, layer=1e-4),
    torch.bfloat16: Bound(mean=0.1, layer=0.1),
    torch.float16: Bound(mean=0.1, layer=0.1),
}
"""Keys are compute types: float32 differs only by the order of summation; 0.1 is the reference's own bound."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """mean, largest: of the absolute differences of logits. departs: the first part beyond the bound, or None."""

    mean: float
    largest: float
    largest_logit: float
    same_next_tokens: int
    num_tokens: int
    departs: str | None
    bound: Bound
    prompt: str

    @property
    def passed(self) -> bool:
        """Whether both models agree within the bound."""
        return self.mean <= self.bound.mean and self.departs is None

    def lines(self) -> Iterator[str]:
        """The result for a reader."""
        yield f"prompt: {self.prompt}, {self.num_tokens} tokens"
        yield f"logits: mean difference {self.mean:.2e} (bound {self.bound.mean:.0e}), largest {self.largest:.2e}"
        yield f"        largest logit {self.largest_logit:.3g}"
        yield f"next tokens: {self.same_next_tokens} of {self.num_tokens} the same"
        yield f"layers: {self.departs or f'all within {self.bound.layer:.0e} of their largest value'}"
        yield f"precision test: {'passed' if self.passed else 'FAILED'}"


def prompt(spec: ModelSpec, args: TrainArgs) -> tuple[Tensor, str]:
    """int64 [1, T] and what it is: a text, or random tokens for a model whose folder has no tokenizer."""
    try:
        tokenizer = model_source.tokenizer(args, spec.directory)
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        return ids, f'"{TEXT[:38]}..."'
    except InvalidInput:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, spec.vocab_size, (1, RANDOM_TOKENS), generator=generator)
        return ids, "random tokens (the folder has no tokenizer that fits)"


@torch.no_grad()
def hugging_face(
    directory: Path, ids: Tensor, *, stored: torch.dtype, computed: torch.dtype, adapter: Path | None = None
) -> Outputs:
    """The outputs of transformers for the folder, with a PEFT adapter beside its weights if given.

    stored: the type to which its weights are rounded first.
    """
    kind = AutoConfig.from_pretrained(directory, trust_remote_code=False).model_type
    sees_images = kind in FAMILIES and bool(FAMILIES[kind].text_type)
    auto = AutoModelForImageTextToText if sees_images else AutoModelForCausalLM
    model = auto.from_pretrained(directory, dtype=stored, attn_implementation="eager", trust_remote_code=False)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).get_base_model()
    model = model.to(computed).eval()
    decoder = model.get_decoder()
    with _watched(decoder.embed_tokens, decoder.layers, decoder.norm) as seen:
        logits_BTV = model(ids).logits
    return {**seen, LOGITS: logits_BTV.float()}


@torch.no_grad()
def megatron(model: GPTModel, spec: ModelSpec, ids: Tensor) -> Outputs:
    """The outputs of our model."""
    ids = ids.to(next(model.parameters()).device)
    with _watched(model.embedding, model.decoder.layers, model.decoder.final_layernorm) as seen:
        logits_BTV = model(ids, torch.arange(ids.shape[1], device=ids.device)[None], None)
    # Megatron's hidden states are [T, B, H].
    hidden = {name: output.transpose(0, 1) for name, output in seen.items()}
    return {**hidden, LOGITS: logits_BTV[..., : spec.vocab_size].float().cpu()}


@torch.no_grad()
def copy_weights(
    source: Sequence[GPTModel], source_spec: ModelSpec, target: Sequence[GPTModel], spec: ModelSpec, read: Read
) -> None:
    """Fills the target with the source's values, in the target's type, as `read` gives them."""
    pairs = zip(table.entries(source, source_spec), table.entries(target, spec), strict=True)
    for from_entry, to_entry in pairs:
        values = read(from_entry.parameter)
        if values is not None:
            to_entry.parameter.copy_(values)


@torch.no_grad()
def copy_parameters(source: Sequence[GPTModel], target: Sequence[GPTModel]) -> None:
    """Fills the target, of the same structure, with the source's values, adapters included, in the target's type."""
    for from_chunk, to_chunk in zip(source, target, strict=True):
        for from_parameter, to_parameter in zip(from_chunk.parameters(), to_chunk.parameters(), strict=True):
            to_parameter.copy_(from_parameter)


def compare(theirs: Outputs, ours: Outputs, *, dtype: torch.dtype, prompt: str) -> Comparison:
    """The differences. theirs: the reference side."""
    bound = BOUNDS[dtype]
    expected, actual = theirs[LOGITS], ours[LOGITS]
    difference = (expected - actual).abs()
    return Comparison(
        mean=_number(difference.mean()),
        largest=_number(difference.max()),
        largest_logit=float(expected.abs().max()),
        same_next_tokens=int((expected.argmax(-1) == actual.argmax(-1)).sum()),
        num_tokens=expected.shape[1],
        departs=next(_departures(theirs, ours, bound), None),
        bound=bound,
        prompt=prompt,
    )


def _departures(theirs: Outputs, ours: Outputs, bound: Bound) -> Iterator[str]:
    for name, expected in theirs.items():
        difference, largest = _number((expected - ours[name]).abs().max()), float(expected.abs().max())
        if difference > bound.layer * largest:
            yield f"the first to diverge is {name}: by up to {difference:.2e}, its values reach {largest:.3g}"


def _number(value: Tensor) -> float:
    """NaN counts as an infinite difference."""
    return float(torch.nan_to_num(value, nan=float("inf")))


@contextmanager
def _watched(
    embedding: torch.nn.Module, layers: Sequence[torch.nn.Module], norm: torch.nn.Module
) -> Iterator[dict[str, Tensor]]:
    """Collects the output of each part while the model runs."""
    parts = {EMBEDDING: embedding, **{f"layer {n}": layer for n, layer in enumerate(layers)}, LAST_NORM: norm}
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401 - of any module
            seen[name] = (output[0] if isinstance(output, tuple) else output).float().cpu()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
