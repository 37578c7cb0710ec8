"""The pairs of examples/dpo: the same in every run, balanced, and none of the held-out ones trained on."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from megatron_trainjob.args.parse import Refused, parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "dpo"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("pairs") for _ in range(2)]
    for folder in folders:
        command = [sys.executable, str(EXAMPLE / "make_pairs.py"), "--output", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    found = {}
    for name in ("pairs", "held-out"):
        first, second = ((folder / f"{name}.jsonl").read_bytes() for folder in folders)
        assert first == second
        found[name] = [json.loads(line) for line in first.splitlines()]
    return found


def test_nothing_held_out_is_trained_on(pairs):
    def texts(name):
        return {text for row in pairs[name] for text in (row["messages"][0]["content"], *answers(row))}

    assert (len(pairs["pairs"]), len(pairs["held-out"])) == (320, 64)
    assert texts("pairs") & texts("held-out") == set()


def answers(row):
    return row["messages"][1]["content"], row["rejected_response"]


def test_no_sentence_is_better_by_itself(pairs):
    better, worse = (Counter(answers(row)[side] for row in pairs["pairs"]) for side in range(2))
    assert max(better.values()) == 1
    assert max(worse.values()) == 1
    assert len(better.keys() & worse.keys()) > len(better) / 2


def test_its_arguments_are_valid():
    spec = yaml.safe_load((EXAMPLE / "smollm2.yaml").read_text())["spec"]
    parsed = parse(spec["args"], task=spec["task"], world_size=1)
    assert not isinstance(parsed, Refused)
    assert parsed.warnings == ()
