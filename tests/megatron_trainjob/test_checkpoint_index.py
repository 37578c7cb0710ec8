"""What may pass for the index of a checkpoint."""

import pytest

from megatron_trainjob import checkpoint_index
from tests.support.checkpoint.forged_pickles import gadgets

NAMES = list(gadgets(__file__))


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_that_is_no_index_is_named_and_nothing_in_it_is_run(tmp_path, name):
    marker = tmp_path / "it-was-run"
    (tmp_path / ".metadata").write_bytes(gadgets(marker)[name])
    problem = checkpoint_index.problem(tmp_path / ".metadata")
    assert problem is not None
    assert str(tmp_path / ".metadata") in problem
    assert not marker.exists()


def test_the_forged_ones_do_run_for_whoever_reads_them_as_any_pickle(tmp_path):
    import pickle

    marker = tmp_path / "it-was-run"
    pickle.loads(gadgets(marker)["os.system"])
    assert marker.exists()
