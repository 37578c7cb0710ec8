"""The loss of each sample of a data set on a tiny model, however its samples are put together. Runs on gloo ranks.

Each sample has a channel of its own, so that the trainer's own evaluation tells the loss of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def losses(model: Path, data: Path, layout: dict[str, Any], *, way: str) -> list[float]:
    """Mean loss of the trained tokens of each sample, in the order of the file; the same on all ranks.

    way: alone (one sample a micro-batch), packed (rows of up to 256 tokens), row (all in one), right or left (padded).
    """
    import torch.distributed as dist
    from transformers import AutoTokenizer

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.data.collate import collate
    from megatron_trainer.data.prepare import prepare
    from megatron_trainer.data.settings import row_shape
    from megatron_trainer.models.spec import read_model
    from megatron_trainer.tasks import TASKS
    from megatron_trainer.train import setup
    from megatron_trainer.train.feed import on_device
    from megatron_trainer.train.step import evaluate
    from megatron_trainjob.args.tree import TrainArgs

    padded = {"padding_free": False, "padding_side": way} if way in ("left", "right") else {}
    args = TrainArgs(
        model=str(model), dataset=(str(data),), dataset_shuffle=False, enable_channel_loss=True, **padded, **layout
    )
    place = parallel.initialize(args)
    spec = read_model(model, args)
    engine = setup.build_engine(args, spec, backends.select())
    options = {"task": "sft", "max_length": 256, "save": data.parent, "is_first_rank": dist.get_rank() == 0}
    items = prepare(args, AutoTokenizer.from_pretrained(model), **options).train
    parts = _parts([item.length for item in items], way)[place.data :: place.data_size]
    batches = (collate([items[index] for index in part], row_shape(args, pad_id=0)) for part in parts)
    rounds = ([on_device(batch, backends.select().device)] for batch in batches)
    found = evaluate(engine, TASKS["sft"](args, spec), rounds, backends.select(), is_requested=lambda: False)
    assert found is not None
    return [found.losses[f"loss_{number}"] for number in range(len(items))]


def _parts(lengths: list[int], way: str) -> list[list[int]]:
    from megatron_trainer.data.ordering.pack import best_fit

    if way == "alone":
        return [[index] for index in range(len(lengths))]
    if way == "packed":
        return best_fit(lengths, 256)
    return [list(range(len(lengths)))]
