"""docs/arguments.md says everything about every argument and is what the code generates."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from megatron_trainjob import generate
from megatron_trainjob.args.document import count_by_status, document
from megatron_trainjob.args.tree import ARGUMENTS

PAGE = Path(__file__).parents[2] / "docs" / "arguments.md"


def row(name):
    rows = (line for line in document().splitlines() if line.startswith(("| `", "| **`")))
    return next(line for line in rows if f"`{name}`" in line.split("|")[1])


def test_every_argument_has_a_row():
    rows = [line for line in document().splitlines() if line.startswith(("| `", "| **`"))]
    assert len(rows) == len(ARGUMENTS)


def test_row_shows_name_type_default_unit_choices_status_and_help(monkeypatch):
    for name in ("ckpt_format", "eval_interval"):
        monkeypatch.setitem(ARGUMENTS, name, replace(ARGUMENTS[name], status="works"))
    assert row("eval_interval") == (
        "| **`eval_interval`** (`eval_steps`) | int | unset | steps |  | works |"
        " Training steps between two evaluations; unset: save_interval. |"
    )
    assert row("ckpt_format") == (
        "| `ckpt_format` | str | torch_dist |  | torch, torch_dist, zarr |"
        " works; zarr refused: Megatron-Core no longer reads or writes zarr; use torch_dist;"
        " torch is read where load holds it, in the layout that wrote it; checkpoints are written in torch_dist, which"
        " every layout loads |"
        " Format of checkpoints on disk. |"
    )


def test_defaults_say_where_they_come_from():
    assert "| config.json |" in row("rotary_base")
    assert "| config.json |" in row("num_layers")
    assert "| default (pt: all, rlhf: last_round) |" in row("loss_scale")
    assert '| "" |' in row("wandb_project")


def test_count_covers_every_argument():
    assert sum(count_by_status().values()) == len(ARGUMENTS)
    assert Counter(count_by_status()) == Counter(argument.status for argument in ARGUMENTS.values())


def test_generate_writes_the_pages_and_check_finds_stale_ones(tmp_path, capsys):
    folder = tmp_path / "docs"
    assert generate.main(["--check", str(folder)]) == 1
    assert generate.main([str(folder)]) == 0
    assert (folder / "arguments.md").read_text() == document()
    assert generate.main(["--check", str(folder)]) == 0
    (folder / "families.md").write_text("")
    assert generate.main(["--check", str(folder)]) == 1
    captured = capsys.readouterr()
    assert "arguments by status: works: " in captured.out
    assert "families.md" in captured.err.splitlines()[-1]
