"""docs/migrating.md: its script becomes the job that it shows, and its names and defaults are the ones in force."""

import re
from pathlib import Path

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job
from megatron_operator.translate import manifests
from megatron_operator.translate.arguments import DEFAULTS_OF_4, EXPERT_DEFAULTS
from megatron_trainjob.args.names import find_alias
from megatron_trainjob.args.tree import ARGUMENTS

TEXT = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()


def block(after: str) -> str:
    """The first block of code behind these words."""
    return re.split(r"```\w*\n", TEXT.split(after)[1])[1]


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose header begins so."""
    lines = TEXT.split(f"\n{header}")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_real_script_becomes_the_job_that_is_shown(capsys, tmp_path):
    (tmp_path / "train.sh").write_text(block("A real script:"))
    assert main(["from-args", str(tmp_path / "train.sh")]) == 0
    assert capsys.readouterr().out == block("turns it into:")
    assert isinstance(manifest.parse(yaml.safe_load(block("turns it into:"))), Job)


def test_the_names_of_both_versions_are_known():
    names = [name for row in rows("| 3.x | 4.x | here |") for cell in row[:2] for name in cell.split(", ")]
    arguments = [name for name in names if re.fullmatch(r"[a-z_]+", name)]
    assert len(arguments) >= 15
    assert [name for name in arguments if name not in ARGUMENTS and find_alias(name, "sft") is None] == []


def test_the_defaults_are_those_that_are_written_out():
    told = {row[0]: row[3] for row in rows("| argument | 3.8 | 3.9 | 4.x | here |")}
    assert told.keys() == DEFAULTS_OF_4.keys() | EXPERT_DEFAULTS["4"].keys()
    for name, value in {**DEFAULTS_OF_4, **EXPERT_DEFAULTS["4"]}.items():
        assert told[name].split(" ")[0] == str(value).lower()


def test_the_names_of_bridge_recipes_have_arguments_here():
    here = [name for row in rows("| Megatron-Bridge | here |") for name in re.findall(r"\b[a-z]+_[a-z_]+\b", row[1])]
    assert [name for name in here if name not in ARGUMENTS] == []


@pytest.mark.parametrize("kind", manifests.KINDS)
def test_every_kind_that_is_read_is_named(kind):
    assert kind in TEXT
