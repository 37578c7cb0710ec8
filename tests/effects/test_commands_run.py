"""Commands that users of ms-swift start from, scaled down to at most four ranks: each trains three steps.

The layout is kept, two ranks of each kind; a tiny model of the family, its Megatron checkpoint where the command loads
one, and rows of the task's kind stand in. Commands that differ in numbers alone run once.
"""

import pytest

from tests.support.arguments.command_runs import command_runs, distinct
from tests.support.ranks import stand_in_runs
from tests.support.ranks.stand_in_runs import StandIns

pytestmark = pytest.mark.dist
RUNS = distinct(command_runs())
QUICK = ("3.8-megatron_base_to_chat", "3.8-megatron_lora_moe", "3.9-megatron_rlhf_kto_dense") + (
    "4.x-megatron_rlhf_dpo_group_by_length",
    "4.x-megatron_muon",
    "4.x-megatron_embedding_qwen3_emb",
)
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("stand-ins"))


@pytest.mark.parametrize("name", NAMES)
def test_a_scaled_command_trains_three_steps(stand_ins, tmp_path, name):
    run = RUNS[name]
    done = stand_in_runs.train(run, stand_ins, tmp_path / "run")
    assert done.exit_code == 0, done.message
    assert len(done.column("grad_norm")) == 3


def test_the_quick_ones_are_there():
    assert set(QUICK) <= RUNS.keys()
