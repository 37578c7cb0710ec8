"""How many tokens a feed-forward block reads of a padded micro-batch of four rows. Runs on a gloo rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def count(model: Path, data: Path, *, mlp_padding_free: bool) -> dict[str, int]:
    """Tokens that the first block read, tokens of all rows, and real ones among them."""
    import torch
    from transformers import AutoTokenizer

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.data.collate import collate
    from megatron_trainer.data.prepare import prepare
    from megatron_trainer.data.settings import row_shape
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(
        model=str(model), dataset=(str(data),), padding_free=False, mlp_padding_free=mlp_padding_free, seed=1
    )
    parallel.initialize(args)
    [chunk] = build_model(read_model(model, args), args, backends.select())
    options = {"task": "sft", "max_length": 256, "save": data.parent, "is_first_rank": True}
    items = prepare(args, AutoTokenizer.from_pretrained(model), **options).train
    batch = collate([items[index] for index in range(4)], row_shape(args, pad_id=0))
    read: list[Any] = []
    chunk.decoder.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[:2].numel()))
    with torch.no_grad():
        chunk(batch.tokens_BT, batch.position_ids_BT, batch.attention_mask)
    return {"tokens": read[0], "row_tokens": batch.tokens_BT.numel(), "real_tokens": batch.num_tokens}
