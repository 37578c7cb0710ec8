"""Every example trains three steps on the CPU: tiny model and data stand in for the real ones, the layout is scaled."""

from pathlib import Path

import pytest
import yaml

from tests.support.arguments.scaled_runs import MAX_RANKS, ScaledRun, scaled, tiny_models_of
from tests.support.matrix import mostly_slow
from tests.support.ranks import stand_in_runs
from tests.support.ranks.stand_in_runs import StandIns

pytestmark = pytest.mark.dist
EXAMPLES = {path.parent.name: path for path in sorted((Path(__file__).parents[2] / "examples").glob("*/trainjob.yaml"))}
QUICK = ("lora-one-gpu", "pretrain-stream", "dpo")
RESUMED = "resume-another-layout"
FAMILIES = {"quickstart": "llama"}
"""Of manifests that name a folder and no model."""
ELSEWHERE = (RESUMED, "vision")
"""Run by a test of their own: below, and test_vision.py with the example's own model and images."""
NAMES = mostly_slow([name for name in EXAMPLES if name not in ELSEWHERE], QUICK)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("stand-ins"))


def scaled_example(name: str) -> ScaledRun:
    """The run of the example's manifest on its family's tiny model."""
    spec = yaml.safe_load(EXAMPLES[name].read_text())["spec"]
    model = FAMILIES.get(name) or next(iter(tiny_models_of(spec["args"]["model"])))
    gpus = (spec["resourcesPerNode"].get("limits") or {}).get("nvidia.com/gpu", 1)
    num_ranks = int(spec.get("nprocPerNode") or gpus) * spec.get("numNodes", 1)
    return scaled(spec["task"], spec["args"], num_ranks=num_ranks, model=model)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_three_steps(stand_ins, tmp_path, name):
    run = scaled_example(name)
    assert run.num_ranks <= MAX_RANKS
    done = stand_in_runs.train(run, stand_ins, tmp_path / "run")
    assert done.exit_code == 0, done.message
    assert len(done.column("grad_norm")) == 3


@pytest.mark.slow
def test_the_resumed_example_goes_on_from_another_layout(stand_ins, tmp_path):
    """Two steps as examples/full-two-nodes trains them, the third in the layout of the example."""
    before, after = scaled_example("full-two-nodes"), scaled_example(RESUMED)
    batch = {"global_batch_size": after.arguments["global_batch_size"], "split_dataset_ratio": 0.0}
    first = stand_in_runs.train(before, stand_ins, tmp_path / "before", train_iters=2, **batch)
    assert first.exit_code == 0, first.message
    done = stand_in_runs.train(after, stand_ins, tmp_path / "after", load=str(tmp_path / "before"))
    assert (done.exit_code, done.message) == (0, "")
    assert (len(done.column("grad_norm")), done.column("iteration")[0]) == (1, 3)
