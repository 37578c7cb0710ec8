"""The loss of each sample of a data set on a tiny model, however its samples are put together. Runs on gang ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any


def losses(model: Path, data: Path, layout: dict[str, Any], *, way: str) -> list[float]:
    """Summed loss of the trained tokens of each sample, in the order of the file; the same on all ranks.

    way: alone (one sample a micro-batch), packed (rows of up to 256 tokens), row (all in one), right or left (padded).
    """
    import torch
    import torch.distributed as dist
    from transformers import AutoTokenizer

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.data.collate import collate
    from megatron_trainer.data.prepare import prepare
    from megatron_trainer.data.settings import row_shape
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    padded = {"padding_free": False, "padding_side": way} if way in ("left", "right") else {}
    args = TrainArgs(model=str(model), dataset=(str(data),), dataset_shuffle=False, **padded, **layout)
    parallel.initialise(args)
    spec = read_model(model, args)
    chunks = build_model(spec, args, backends.select())
    load_weights(chunks, spec)
    options = {"task": "sft", "max_length": 256, "save": data.parent, "is_first_rank": dist.get_rank() == 0}
    items = prepare(args, AutoTokenizer.from_pretrained(model), **options).train
    parts = _parts(list(range(len(items))), [item.length for item in items], way)
    place = parallel.coordinates()
    sums = torch.zeros(len(items), dtype=torch.float64)
    with torch.no_grad():
        for part in parts[place.data :: place.data_size]:
            batch = collate([items[index] for index in part], row_shape(args, pad_id=0))
            sums += _sums(chunks[0], batch, part, len(items))
    dist.all_reduce(sums)
    copies = dist.get_world_size() // (place.data_size * place.context_size)
    return (sums / copies).tolist()


def _parts(order: list[int], lengths: list[int], way: str) -> list[list[int]]:
    from megatron_trainer.data.pack import best_fit

    if way == "alone":
        return [[index] for index in order]
    if way == "packed":
        return best_fit(lengths, 256)
    return [order]


def _sums(model: Any, whole: Any, part: list[int], count: int) -> Any:
    """Loss sums of the samples of one micro-batch, of the tokens that this rank holds."""
    import torch
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from megatron_trainer import parallel

    batch = parallel.local_part(whole)
    owner_BT = parallel.local_part(replace(whole, position_ids_BT=_owners(whole))).position_ids_BT
    logits_BTV = model(
        batch.tokens_BT,
        batch.position_ids_BT,
        batch.attention_mask,
        packed_seq_params=parallel.packed_sequence_parameters(whole),
    )
    logits_BTV = gather_from_tensor_model_parallel_region(logits_BTV)
    labels_BT = batch.labels_BT
    flat = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).double(), labels_BT.flatten(), reduction="none", ignore_index=-100
    )
    sums = torch.zeros(count, dtype=torch.float64)
    trained = labels_BT.flatten() >= 0
    return sums.index_add(0, torch.tensor(part)[owner_BT.flatten()[trained]], flat[trained])


def _owners(batch: Any) -> Any:
    """Which sample of the micro-batch each token belongs to; padding belongs to the last one and is never trained."""
    import torch

    rows, length = batch.tokens_BT.shape
    if batch.cu_seqlens is None:
        return torch.arange(rows)[:, None].expand(rows, length).contiguous()
    token = torch.arange(length)
    owner = torch.bucketize(token, batch.cu_seqlens[1:].long(), right=True)
    return owner.clamp(max=batch.num_samples - 1)[None]
