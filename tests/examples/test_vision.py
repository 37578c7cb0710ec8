"""examples/vision: a model of random weights learns to read real pictures, and transformers reads its export."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.ranks.tiny_run import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "vision"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("vision")
    for script in ("make_data.py", "make_model.py"):
        subprocess.run([sys.executable, str(EXAMPLE / script), "--output", str(folder)], check=True)
    return folder


def show_result():
    spec = importlib.util.spec_from_file_location("show_result", EXAMPLE / "show_result.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.dist
def test_held_out_digits_are_read_far_above_chance(folder):
    given = yaml.safe_load((EXAMPLE / "trainjob.yaml").read_text())["spec"]["args"]
    given = json.loads(json.dumps(given).replace("/data/", f"{folder}/"))
    run = train({**given, "lr": float(given["lr"]), "save": str(folder / "out"), "add_version": False})
    assert (run.exit_code, run.message) == (0, "")
    losses = [line["lm loss"] for line in run.log if "lm loss" in line]
    assert losses[-1] < losses[0] / 5
    assert show_result().accuracy(folder / "out" / "hf", folder) > 0.6
