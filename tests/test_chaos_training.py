"""A real training that is killed ends exactly as one left alone (chaos_training.py does it 20 times and more)."""

import pytest

from tests.support.checkpoint.chaos_training import compare


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["prepared", "streaming and packed"])
def test_a_killed_training_ends_with_every_loss_of_the_undisturbed_one(tmp_path, way):
    assert "bit-identical" in compare(tmp_path, kills=2, seed=3, steps=300, way=way)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_between_saves_goes_on_from_memory(tmp_path):
    said = compare(tmp_path, kills=1, seed=4, steps=60, way="in memory", kill_at=20)
    assert "bit-identical" in said
    assert "from memory at" in said
