"""What test_real_weights.py runs on gloo ranks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"


def directory() -> Path | None:
    """Where examples/quickstart/make_model.py puts its model; None when it has not been run."""
    module = importlib.util.spec_from_file_location("quickstart_place", QUICKSTART / "place.py")
    place = importlib.util.module_from_spec(module)
    module.loader.exec_module(place)
    found = place.data_directory() / "model"
    return found if found.exists() else None


def logits(directory: Path, tokens: list[int], settings: dict[str, Any]) -> Any:
    """float32 [tokens, vocabulary] of our model on the last pipeline stage's first rank, None on other ranks."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_trainer import backend as backends
    from megatron_trainer import parallel
    from megatron_trainer.convert.load import load_weights
    from megatron_trainer.models.build import build_model
    from megatron_trainer.models.spec import read_model
    from megatron_trainjob.args.tree import TrainArgs

    args = TrainArgs(model=str(directory), torch_dtype="float32", recompute_granularity="none", **settings)
    parallel.initialize(args)
    spec = read_model(directory, args)
    models = build_model(spec, args, backends.select())
    load_weights(models, spec)
    row = torch.tensor(tokens)[None]
    found: list[Any] = []

    def forward_step(iterator: Any, model: Any) -> Any:
        next(iterator)

        def keep(output: Any) -> Any:
            found.append(output)
            return output.sum(), {}

        return model(row, torch.arange(len(tokens))[None], None), keep

    with torch.no_grad():
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter([0]),
            model=models,
            num_microbatches=1,
            seq_length=len(tokens),
            micro_batch_size=1,
            forward_only=True,
        )
    if not found:
        return None
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(found[0]) for _ in range(group.size())]
    torch.distributed.all_gather(parts, found[0].contiguous(), group=group)
    return torch.cat(parts, -1)[0, :, : spec.vocab_size] if group.rank() == 0 else None
