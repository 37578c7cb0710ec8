"""Multi-token prediction of a model with images beside the formulas in plain torch, on packed samples.

The further layer is transformers' own decoder layer behind the last one; what it sees of later tokens are their
embeddings, or the features of images in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.models import prediction_model, tiny_model
from tests.support.ranks import image_parity, image_samples, parity, prediction_ranks

SAMPLES = (2, 1, 4)


def truth(directory: Path, vision: Any) -> Path:
    """The file with {means: of both losses, gradients: by the names of weight tables}."""
    import torch
    from safetensors.torch import load_file

    path = directory / "reference-prediction.pt"
    if path.exists():
        return path
    model = _whole(directory)
    stored = load_file(directory / "model.safetensors")
    extra = {f"{name}.weight": stored[f"{name}.weight"].requires_grad_() for name in prediction_model.BESIDE.values()}
    sums, counts = torch.zeros(2), torch.zeros(2)
    for number in SAMPLES:
        one = image_samples.sample(number, vision)
        labels = torch.from_numpy(one.labels.astype("int64"))
        for distance, logits in enumerate(_logits(model, extra, one, vision)):
            wanted = labels[1 + distance :]
            found = torch.nn.functional.cross_entropy(logits[: len(wanted)], wanted, reduction="sum")
            sums = sums + torch.stack([found * (index == distance) for index in range(2)])
            counts[distance] += (wanted >= 0).sum()
    means = sums / counts
    (means[0] + prediction_model.FACTOR * means[1]).backward()
    gradients = {name: each.grad for name, each in extra.items()}
    found = parity.stored_gradients(model, directory / "gradients")
    gradients |= {
        name.replace(f"model.layers.{prediction_model.LAYERS}.", "mtp.layers.0."): each for name, each in found.items()
    }
    torch.save({"means": means.detach(), "gradients": gradients}, path)
    return path


def _whole(directory: Path) -> Any:
    """transformers' model with the further layer as its last one, which its forward pass leaves out."""
    import torch

    kind = tiny_model.transformers_config(directory).model_type
    folder = directory / prediction_model.IN_ONE_LIST
    model = tiny_model.auto_class(kind).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.model.language_model.config.num_hidden_layers = prediction_model.LAYERS
    return model


def _logits(model: Any, extra: dict[str, Any], one: Any, vision: Any) -> tuple[Any, Any]:
    """The logits [T, V] of the next token and of the one after it."""
    import torch

    seen: dict[str, Any] = {}
    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(lambda _, __, given: seen.update(given), with_kwargs=True)
    kept = model.model.register_forward_hook(lambda _, __, output: seen.update(hidden=output.last_hidden_state))
    logits = image_parity.logits_of_transformers(model, one, vision)
    hook.remove()
    kept.remove()
    embedded, hidden = seen["inputs_embeds"], seen["hidden"]
    length = embedded.shape[1]
    places = seen.get("position_ids")
    places = torch.arange(length).expand(3, 1, -1) if places is None else places[-3:]
    later = torch.cat([embedded[:, 1:], torch.zeros_like(embedded[:, :1])], dim=1)
    both = [_norm(later, extra["mtp.pre_fc_norm_embedding.weight"], model)]
    both += [_norm(hidden, extra["mtp.pre_fc_norm_hidden.weight"], model)]
    states = torch.cat(both, -1) @ extra["mtp.fc.weight"].T
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    angles = decoder.rotary_emb(states, places)
    states = decoder.layers[prediction_model.LAYERS](states, position_embeddings=angles, attention_mask=mask)
    return logits, model.lm_head(_norm(states, extra["mtp.norm.weight"], model))[0]


def _norm(states: Any, scale: Any, model: Any) -> Any:
    import torch

    epsilon = model.config.text_config.rms_norm_eps
    return (1 + scale) * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + epsilon)


def compare(directory: Path, reference: Path, settings: dict[str, Any]) -> Any:
    """One step of one packed micro-batch: differences as in prediction_ranks."""
    import torch

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.data.collate import RowShape, collate, row_multiple
    from megatron_trainer.models.spec import read_model
    from megatron_trainer.tasks import TASKS
    from megatron_trainer.train import setup
    from megatron_trainjob.args.tree import TrainArgs

    expected = torch.load(reference)
    args = TrainArgs(
        model=str(directory),
        mtp_num_layers=1,
        mtp_loss_scaling_factor=prediction_model.FACTOR,
        recompute_granularity="none",
        use_distributed_optimizer=False,
        packing=True,
        freeze_vit=False,
        freeze_aligner=False,
        **settings,
    )
    parallel.initialize(args)
    spec = read_model(directory, args)
    engine = setup.build_engine(args, spec, backends.select())
    width = row_multiple(
        tensor_parallel=args.tensor_model_parallel_size,
        context_parallel=1,
        sequence_parallel=args.sequence_parallel,
        fp8=False,
    )
    shape = RowShape(pad_id=0, padding_free=True, sample_multiple=1, row_multiple=width)
    batch = collate([image_samples.sample(number, spec.model.vision) for number in SAMPLES], shape)
    stored = parity.in_table_names(directory)
    return prediction_ranks.differences(TASKS["sft"](args, spec), engine, spec, [batch], stored=stored, **expected)
