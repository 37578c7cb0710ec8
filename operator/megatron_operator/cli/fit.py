"""mtj plan --fit: the fastest settings of a manifest that fit the memory of its GPUs."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from megatron_operator.cli.load import Loaded
from megatron_operator.cli.output import FAILED, INVALID, OK, error, escape, out, show_table, table
from megatron_trainjob.args.model.check import check
from megatron_trainjob.args.parse import Accepted
from megatron_trainjob.memory.fitting import HEADROOM
from megatron_trainjob.memory.search import Candidate, Found, Search

GIB = 1024**3


def show_fit(loaded: Loaded, gpu_bytes: int | None) -> int:
    """Prints what was found as a table and as lines for spec.args; 1 if nothing fits, 2 if it cannot be computed."""
    if problem := _problem(loaded, gpu_bytes):
        error.print(f"[bold red]--fit:[/] {problem}")
        return INVALID
    assert loaded.job is not None
    assert loaded.hf_config is not None
    assert gpu_bytes is not None
    job = loaded.job
    model = check(loaded.hf_config, job.args).model
    assert model is not None  # loading has rejected an invalid config.json
    accepted = Accepted(args=job.args, given=frozenset(job.given_args))
    search = Search(
        accepted=accepted, shape=model, world_size=job.world_size, task=job.task, hf_config=loaded.hf_config
    )
    found = search.run(gpu_bytes)
    out.print(
        f"[dim]{gpu_bytes / GIB:.0f} GiB a GPU; {HEADROOM:.0%} of them are used, the rest is for fragmentation[/]"
    )
    _show_candidates(found)
    if found.fastest is None:
        out.print(
            f"[red]nothing fits[/]: the least is {found.smallest.total_bytes / GIB:.1f} GiB, with "
            f"{_written(found.smallest.settings)}; split the model over more GPUs (tensor_model_parallel_size, "
            "pipeline_model_parallel_size), or shorten max_length"
        )
        return FAILED
    _show_lines(found.fastest)
    return OK


def _problem(loaded: Loaded, gpu_bytes: int | None) -> str:
    if gpu_bytes is None:
        return "the memory of a GPU is not known; add --gpu-memory, for example --gpu-memory 80Gi"
    if loaded.hf_config is None:
        return "the model's config.json cannot be read here; bind its volume with --volume"
    return ""


def _show_candidates(found: Found) -> None:
    """Times are relative: a run's own log has the seconds."""
    shown = table("fit", "", "GiB", "step time", "settings that differ from the manifest")
    rows = (
        ("as written", found.written),
        ("fastest that fits", found.fastest),
        ("with the manifest's own moments", found.unrounded),
        ("if memory were no limit", found.unlimited),
    )
    for name, each in rows:
        if each is not None:
            relative = each.seconds / found.unlimited.seconds
            shown.add_row(name, f"{each.total_bytes / GIB:.1f}", f"{relative:.2f}", _written(each.settings))
    show_table(shown)


def _show_lines(fastest: Candidate) -> None:
    if not fastest.settings:
        out.print("[green]the manifest is the fastest that fits[/]")
        return
    out.print("[green]in spec.args:[/]")
    for name, value in fastest.settings.items():
        out.print(f"  {_line(name, value)}")
    if fastest.is_rounded:
        out.print("[dim]Moments in 16 bits change a run's numbers a little; the row with its own moments does not.[/]")


def _written(settings: Mapping[str, object]) -> str:
    return ", ".join(_line(name, value) for name, value in settings.items()) or "none"


def _line(name: str, value: object) -> str:
    """The setting as a line of YAML, whose brackets rich must not take for markup."""
    plain = list(value) if isinstance(value, tuple) else value
    return escape(f"{name}: {yaml.safe_dump(plain, default_flow_style=True).split(chr(10))[0]}")
