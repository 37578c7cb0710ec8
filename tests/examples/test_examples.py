"""Every example is a valid manifest without warnings, and its README quotes what `mtj plan` says of it."""

from pathlib import Path

import pytest
import yaml

from megatron_operator import manifest
from megatron_operator.cli.main import main
from megatron_operator.core.job import Job

EXAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "examples").glob("*/trainjob.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid_as_it_is(example):
    job = manifest.parse(yaml.safe_load((example / "trainjob.yaml").read_text()))
    assert isinstance(job, Job), job
    assert not any("args" in warning.path for warning in job.warnings), job.warnings


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_readme_quotes_the_plan(example, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    readme = (example / "README.md").read_text()
    assert "excerpt of `mtj plan" in readme
    quoted = readme.split("excerpt of `mtj plan")[1].split("```\n")[1].splitlines()
    assert main(["plan", str(example / "trainjob.yaml")]) == 0
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in said if line in quoted] == quoted
    assert len(quoted) >= 4


def test_there_is_an_example_for_every_topic():
    assert len(EXAMPLES) >= 15
