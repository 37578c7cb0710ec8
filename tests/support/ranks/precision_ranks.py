"""What a gloo rank does in tests of determinism and of time limits."""

from __future__ import annotations


def refusals() -> tuple[str, str]:
    """What torch says of an operation that it cannot repeat, without and with determinism."""
    import torch

    from megatron_trainer import backend as backends

    backend = backends.select()
    found = []
    for enabled in (False, True):
        backend.set_deterministic(enabled)
        try:
            torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
            found.append("")
        except RuntimeError as err:
            found.append(str(err))
    backend.set_deterministic(False)
    return found[0], found[1]


def limits_of_groups(timeout_s: int) -> list[set[float]]:
    """After how many seconds each group gives up on a silent rank: in a step, in a save between steps, and after."""
    import torch
    from megatron.core import parallel_state

    from megatron_trainer import parallel
    from megatron_trainjob.args.tree import TrainArgs

    parallel.initialize(TrainArgs(model=""))
    groups = (
        torch.distributed.group.WORLD,
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_data_parallel_group(with_context_parallel=True),
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_expert_model_parallel_group(),
    )
    found = []

    def look() -> None:
        backends = (group._get_backend(torch.device("cpu")) for group in groups)
        found.append({backend.options._timeout.total_seconds() for backend in backends})

    with parallel.waits_at_most(timeout_s):
        look()
        with parallel.waits_at_most(parallel.PATIENCE_S):
            look()
        look()
    look()
    return found
