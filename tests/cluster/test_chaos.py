"""Five hundred faults from a seed: every job ends as it should, no pod of two attempts runs at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import chaos

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(1200)
def test_five_hundred_faults_leave_every_job_in_its_right_end(quiet_plane: ControlPlane, tmp_path: Path):
    injected = chaos.run(quiet_plane, tmp_path, seed=1, num_faults=500)
    assert sum(injected.values()) >= 500
    kinds = {"operator killed", "pod deleted", "API server restarted", "watch-silent", "lost-answer"}
    assert kinds | {"rank killed", "container killed"} <= set(injected)
