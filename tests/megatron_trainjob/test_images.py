"""One name for each image everywhere: the contract, what is built, what the chart installs, what manifests say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from megatron_trainjob import images

ROOT = Path(__file__).parent.parent.parent
KNOWN = {images.OPERATOR, images.TRAINER}
FILES = (
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("examples/**/*.yaml"),
    *ROOT.glob("examples/**/*.md"),
    *ROOT.glob("docker/*"),
    *ROOT.glob("charts/**/*.yaml"),
    *ROOT.glob("tests/megatron_operator/golden/*.yaml"),
)
NAMED = re.compile(r"\b(megatron-train(?:er|-operator)(?:/trainer)?:[\w.]*\d[\w.-]*)")


def test_the_version_is_the_projects_and_the_charts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = (ROOT / "charts" / "megatron-train-operator" / "Chart.yaml").read_text()
    assert project["version"] == images.VERSION
    assert f"\nappVersion: {images.VERSION}\n" in chart


def test_every_file_that_names_an_image_names_one_of_these():
    found = {(path.name, name) for path in FILES if path.is_file() for name in NAMED.findall(path.read_text())}
    assert {name for _, name in found} == KNOWN
    assert {path for path, name in found if name not in KNOWN} == set()
    assert {"trainjob.yaml", "volume.yaml", "operator.md", "trainer.Dockerfile"} <= {path for path, _ in found}


def test_the_build_and_the_chart_make_the_names_from_the_same_words():
    build = (ROOT / "docker" / "build").read_text()
    names = (ROOT / "charts" / "megatron-train-operator" / "templates" / "_names.tpl").read_text()
    values = (ROOT / "charts" / "megatron-train-operator" / "values.yaml").read_text()
    operator, trainer = (image.partition(":")[0] for image in (images.OPERATOR, images.TRAINER))
    assert f"build {operator} " in build
    assert f"build {trainer} " in build
    assert f'"%s{trainer}:%s"' in names
    assert f"repository: {operator}\n" in values
