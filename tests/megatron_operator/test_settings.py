"""The operator's settings: read whole, or refused with every problem at once."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from megatron_operator import clock, generate
from megatron_operator.process import progress_wiring, settings
from megatron_operator.process.controller import Jobs
from tests.support.operator.job_values import raw

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


def test_the_chart_sets_variables_that_the_operator_reads():
    """Those of its values by their declarations, those that the kubelet knows by hand."""
    chart = Path(__file__).parents[2] / "charts" / "megatron-train-operator"
    by_hand = re.findall(r"name: (MTJ_\w+), value", (chart / "templates" / "deployment.yaml").read_text())
    by_value = re.findall(r"name: (MTJ_\w+), value", generate.settings_template())
    assert set(by_hand) == {"MTJ_POD_NAME", "MTJ_POD_NAMESPACE", "MTJ_POD_IP"} <= set(settings.VARIABLES.values())
    assert len(by_value) == len(set(by_value)) > 15


def test_every_value_that_a_setting_names_is_in_the_chart():
    chart = Path(__file__).parents[2] / "charts" / "megatron-train-operator"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    named = {each.metadata.get(key, "") for each in fields(settings.Settings) for key in ("chart", "switch")} - {""}
    for path in named:
        found = values
        for part in path.split("."):
            assert part in found, path
            found = found[part]


def test_default_values_of_the_chart_are_the_defaults_of_the_settings():
    """What differs is what only the chart knows. The kustomize base is the chart with its default values."""
    base = Path(__file__).parents[2] / "charts" / "kustomize" / "operator.yaml"
    (deployment,) = (each for each in yaml.safe_load_all(base.read_text()) if each and each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    by_chart, own = settings.read({**IN_A_POD, **given}), settings.read(IN_A_POD)
    set_by_chart = [name for name, variable in settings.VARIABLES.items() if variable in given]
    assert len(set_by_chart) > 10
    assert [name for name in set_by_chart if getattr(by_chart, name) != getattr(own, name)] == ["lease_name"]
    values = yaml.safe_load((base.parents[1] / "megatron-train-operator" / "values.yaml").read_text())
    ports = (values["webhook"]["port"], values["progressPush"]["port"])
    assert ports == (own.webhook_port, own.progress_service_port)  # of parts that are off by default


def test_a_renewed_authority_reaches_the_pods_that_are_made_from_then_on(tmp_path, monkeypatch):
    moment = [1000.0]
    monkeypatch.setattr(clock, "now", lambda: moment[0])
    (tmp_path / "ca.crt").write_text("first")
    given = settings.Settings(progress_port=10443, progress_host="fd00::1", progress_certificates=tmp_path)
    jobs = Jobs(progress_push=progress_wiring.for_pods(given))
    jobs.put(raw(resourceVersion="1"))

    def authority():
        return jobs.parse(("team", "tune")).progress_push.authority

    assert jobs.parse(("team", "tune")).progress_push.url == "https://[fd00::1]:10443"
    (tmp_path / "ca.crt").write_text("second")
    assert authority() == "first"
    moment[0] += 61
    assert authority() == "second"
    (tmp_path / "ca.crt").unlink()
    moment[0] += 61
    assert authority() == "second", "a file that is just being replaced changes nothing"
