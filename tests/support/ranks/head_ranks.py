"""A classifier of transformers and ours: scores, gradients and the exported weights, in any layout.

`make_classifier` writes one, `reference` is what transformers makes of the rows, `compare` runs on the ranks of a gang;
`Runs` makes whole runs of models with a head.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.models import layouts
from tests.support.ranks import parity, tiny_run

ABSOLUTE = 1e-4
"""Of a loss after some steps; Adam's division by small second moments enlarges sums in another order."""
LORA = {
    "train_type": "lora",
    "lora_rank": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": ["linear_proj", "linear_fc2"],
}
NUM_LABELS = 3
LABELS = ((2, 0, 1), (1, 2))
"""Of the sequences of parity.PACKED_ROWS; padded rows have one sequence each and use the first."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Largest over all ranks. gradients, score_gradient: relative to the tensor's largest. changed: of the export."""

    scores: float
    loss: float
    gradients: float
    score_gradient: float
    worst: str
    changed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """runs(model, layout, **arguments): a finished run; the same is made once.

    write: the data of a run with these arguments, under the root. defaults: arguments of every run. layout: as in
    layouts.py.
    """

    root: Path
    write: Callable[[Mapping[str, Any]], Path]
    defaults: Mapping[str, Any]
    done: dict[str, tiny_run.TinyRun] = field(default_factory=dict)

    def __call__(self, model: Path, layout: str = "tp1", **given: Any) -> tiny_run.TinyRun:
        key = f"{model} {layout} {given}"
        if key not in self.done:
            chosen, ranks = layouts.of_run(layout)
            settings = {**self.defaults, **chosen, **given}
            save = self.root / f"run{len(self.done)}"
            run = tiny_run.train(tiny_run.arguments(model, self.write(settings), save, **settings), ranks=ranks)
            assert run.exit_code == 0, run.message
            self.done[key] = run
        return self.done[key]


def make_classifier(directory: Path, *, num_labels: int = NUM_LABELS) -> Path:
    """A classifier on the decoder of a tiny causal model, as transformers writes it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from tests.support.models.tiny_model import transformers_config

    made = directory.with_name(f"{directory.name}-classifier-{num_labels}")
    if made.exists():
        return made
    config = transformers_config(directory)
    config.num_labels = num_labels
    model = AutoModelForSequenceClassification.from_pretrained(directory, config=config, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(5))
    model.save_pretrained(made)
    for path in (*directory.glob("tokenizer*"), *directory.glob("chat_template*")):
        shutil.copy(path, made)
    return made


def reference(classifier: Path, *, packed: bool) -> Path:
    """The file with transformers' scores, loss and gradients of the rows."""
    import torch
    from transformers import AutoModelForSequenceClassification

    path = classifier / f"reference-{'packed' if packed else 'padded'}.pt"
    if path.exists():
        return path
    model = AutoModelForSequenceClassification.from_pretrained(
        classifier, dtype=torch.float32, attn_implementation="eager"
    )
    rows = parity.rows(packed)
    ids = parity.tokens(model.config.vocab_size)
    scores, loss = [], torch.zeros(())
    for row, lengths, labels in zip(ids, rows, LABELS, strict=True):
        parts = row.split(list(lengths))
        found = [model(part[None], labels=torch.tensor([n])) for part, n in zip(parts, labels, strict=False)]
        scores.append(torch.cat([one.logits for one in found]).detach())
        loss = loss + torch.stack([one.loss for one in found]).mean() / len(rows)
    loss.backward()
    result = {"scores": scores, "loss": float(loss), "gradients": _as_checkpoint(model, classifier)}
    torch.save(result, path)
    return path


def _as_checkpoint(model: Any, classifier: Path) -> dict[str, Any]:
    """Gradients under the names and shapes of a checkpoint (experts one by one)."""
    import torch
    from safetensors.torch import load_file

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    model.save_pretrained(classifier / "gradients")
    return load_file(classifier / "gradients" / "model.safetensors")


def compare(classifier: Path, settings: dict[str, Any], *, packed: bool, virtual_stages: int | None) -> Differences:
    """Loads the classifier in the layout of `settings` and compares. Every rank returns the same."""
    import torch
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from safetensors.torch import load_file

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    given = {**parity._SETTINGS, "task_type": "seq_cls", **settings}
    args = TrainArgs(model=str(classifier), **given)
    parallel.initialize(args, virtual_stages=virtual_stages)
    spec = read_model(classifier, args)
    models = build_model(spec, args, backends.select())
    load_weights(models, spec)
    stored, exported = load_file(classifier / "model.safetensors"), parity.gathered(models, spec)
    changed = [n for n in stored.keys() | exported.keys() if not parity._same(stored.get(n), exported.get(n))]
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=False, grad_reduce_in_fp32=True)
    chunks = [DistributedDataParallel(models[0].config, ddp, model) for model in models]
    models[0].config.finalize_model_grads_func = finalize_model_grads
    expected = torch.load(reference(classifier, packed=packed))
    scores, loss = _run(chunks, spec, packed=packed, expected=expected)
    ours = parity.gathered(models, spec, read=lambda parameter: getattr(parameter, "main_grad", None))
    errors = {name: parity._relative(ours[name], theirs) for name, theirs in expected["gradients"].items()}
    worst = max(errors, key=errors.__getitem__)
    return Differences(
        scores=parity._largest(scores),
        loss=parity._largest(loss),
        gradients=errors[worst],
        score_gradient=errors["score.weight"],
        worst=worst,
        changed=tuple(sorted(changed)),
    )


def _run(chunks: Any, spec: Any, *, packed: bool, expected: Any) -> tuple[float, float]:
    """One forward and backward pass over both rows; the largest differences of scores and of the loss on this rank."""
    import torch
    from megatron.core import parallel_state

    from megatron_trainer import parallel
    from megatron_trainer.models.score import SequenceScores

    lengths = parity.rows(packed)
    batches = [
        parity.micro_batch(row, n, packed=packed)
        for row, n in zip(parity.tokens(spec.vocab_size), lengths, strict=True)
    ]
    found, losses = [0.0], []

    def forward_step(iterator: Any, model: Any) -> Any:
        number = next(iterator)
        whole = batches[number]
        local = parallel.local_part(whole)
        output = model(
            local.tokens_BT,
            local.position_ids_BT,
            None,
            packed_seq_params=parallel.packed_sequence_parameters(whole),
            output_processor=SequenceScores(whole=whole, batch=local),
        )

        def loss(scores_SC: Any) -> Any:
            found.append(float((scores_SC.detach() - expected["scores"][number]).abs().max()))
            labels = torch.tensor(LABELS[number][: len(scores_SC)])
            mean = torch.nn.functional.cross_entropy(scores_SC, labels)
            losses.append(float(mean.detach()) / len(batches))
            return mean, {}

        return output, loss

    parity.run_schedule(chunks, forward_step, len(batches), parity.NUM_TOKENS)
    torch.distributed.barrier()
    is_last = parallel_state.is_pipeline_last_stage()
    return max(found), abs(sum(losses) - expected["loss"]) if is_last else 0.0
