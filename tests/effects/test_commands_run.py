"""Commands that users of ms-swift start from, scaled down to at most four ranks: each trains three steps.

The layout is kept, two ranks of each kind; a tiny model of the family, its Megatron checkpoint where the command loads
one, and rows of the task's kind stand in. Commands that differ in numbers alone run once.
"""

import pytest

from tests.support.arguments.command_runs import command_runs, distinct
from tests.support.matrix import mostly_slow
from tests.support.ranks import stand_in_runs
from tests.support.ranks.stand_in_runs import StandIns

pytestmark = pytest.mark.dist
RUNS = distinct(command_runs())
QUICK = ("3.8-megatron_lora_moe",)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("stand-ins"))


@pytest.mark.parametrize("name", mostly_slow(RUNS, QUICK))
def test_a_scaled_command_trains_three_steps(stand_ins, tmp_path, name):
    run = RUNS[name]
    done = stand_in_runs.train(run, stand_ins, tmp_path / "run")
    assert done.exit_code == 0, done.message
    assert len(done.column("grad_norm")) == 3
