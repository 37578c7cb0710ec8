"""Combinations that no one chose: several ranks learn what one rank learns, or refuse in words before they start."""

import pytest

from megatron_trainjob.exit_codes import ExitCode
from tests.support.models import tiny_model
from tests.support.ranks import random_runs, tiny_run

pytestmark = [pytest.mark.dist, pytest.mark.slow]

NUMBERS = range(60)
COMPARED = ("lm loss", "loss", "grad_norm")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    random_runs.write_data(folder)
    return folder


@pytest.mark.parametrize("number", NUMBERS)
def test_any_layout_learns_what_one_rank_learns(number, data, model_root, tmp_path):
    drawn = random_runs.draw(number, data)
    model = tiny_model.make(drawn.family, model_root)
    given = tiny_run.arguments(model, data, tmp_path / "one") | drawn.arguments
    several = tiny_run.train(
        {**given, **drawn.layout, "save": str(tmp_path / "several")}, ranks=drawn.ranks, task=drawn.task
    )
    if several.exit_code == ExitCode.BAD_ARGUMENTS:
        assert several.message.startswith("spec.args."), drawn
        pytest.skip(several.message)
    one = tiny_run.train(given, task=drawn.task)
    assert (one.exit_code, several.exit_code) == (0, 0), (one.message, several.message, drawn)
    for name in COMPARED:
        assert several.column(name) == pytest.approx(one.column(name), rel=2e-3, abs=2e-4), (name, drawn)
