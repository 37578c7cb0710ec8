"""The operator's settings: read whole, or refused with every problem at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from megatron_operator.process import progress_wiring, settings

IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def test_defaults_fit_a_pod_that_watches_everything():
    read = settings.read(IN_A_POD)
    assert (read.watch_namespaces, read.leader_election, read.num_workers) == ((), True, 16)


def test_lists_and_numbers_are_read():
    variables = {"MTJ_WATCH_NAMESPACES": "a, b", "MTJ_GANG_SCHEDULERS": "Native,Volcano", "MTJ_NUM_WORKERS": "3"}
    read = settings.read({**IN_A_POD, **variables, "KUBECONFIG": "/k"})
    assert read.watch_namespaces == ("a", "b")
    assert read.gang_schedulers == ("Native", "Volcano")
    assert (read.num_workers, read.kubeconfig) == (3, Path("/k"))


def test_every_wrong_variable_is_named_at_once():
    variables = {"MTJ_NUM_WORKERS": "0", "MTJ_GANG_SCHEDULERS": "Slurm", "MTJ_LEADER_ELECTION": "maybe"}
    with pytest.raises(settings.InvalidSettings) as caught:
        settings.read(variables)
    assert {violation.path for violation in caught.value.violations} == {*variables, "KUBECONFIG"}


@pytest.mark.parametrize(("address", "host"), [("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]")])
def test_the_leaders_address_can_stand_in_a_url(address, host):
    replica = settings.Settings(pod_name="a", pod_ip=address, progress_port=10443)
    assert progress_wiring.identity(replica) == f"a_{host}:10443"


def test_the_chart_sets_variables_that_the_operator_reads_and_its_defaults_are_the_same():
    chart = Path(__file__).parents[2] / "charts" / "megatron-train-operator"
    named = re.findall(r"name: (MTJ_\w+), value", (chart / "templates" / "deployment.yaml").read_text())
    assert set(named) <= set(settings.VARIABLES.values())
    values, defaults = yaml.safe_load((chart / "values.yaml").read_text()), settings.Settings(pod_name="")
    for key, value in {
        "workers": defaults.num_workers,
        "maxParallelCreates": defaults.max_parallel_creates,
        "logLevel": defaults.log_level,
        "perJobMetrics": defaults.per_job_metrics,
        "nodeLossDetection": defaults.node_loss_detection,
        "watchNamespaces": list(defaults.watch_namespaces),
    }.items():
        assert (key, values[key]) == (key, value)
    assert values["metrics"]["port"] == defaults.http_port
    assert values["webhook"]["port"] == defaults.webhook_port
    assert values["progressPush"]["port"] == defaults.progress_service_port
    assert values["kueue"]["mode"] == defaults.kueue_mode
    assert values["leaderElection"]["leaseDurationSeconds"] == defaults.lease_duration_s
