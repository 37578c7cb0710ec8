"""Fields of spec are declared once, on the value: schema and reader agree because both follow from it."""

from dataclasses import fields

import pytest

from megatron_operator.api import values
from megatron_operator.api.schema import structural
from megatron_operator.api.schema.declared import read
from megatron_operator.api.spec import Spec, find_field, spec_schema
from megatron_operator.core.job import Job

RECORDS = {
    "": Spec,
    "copyToPods": values.CopyToPods,
    "checkpoint": values.Checkpoint,
    "network": values.Network,
    "network.rdma": values.Rdma,
    "scheduling": values.Scheduling,
    "scheduling.topology": values.Topology,
    "runPolicy": values.RunPolicy,
    "failurePolicy": values.FailurePolicy,
    "elasticPolicy": values.Elastic,
}


@pytest.mark.parametrize(("path", "kind"), RECORDS.items(), ids=lambda value: value or "spec")
def test_schema_of_a_record_has_the_declared_fields_and_no_others(path, kind):
    declared = [each.metadata["name"] for each in fields(kind)]
    properties = (find_field(spec_schema(), path) if path else spec_schema())["properties"]
    leaves = [
        f"{name}.{part}" if f"{name}.{part}" in declared else name
        for name, schema in properties.items()
        for part in (schema.get("properties") or {"": None})
    ]
    assert list(dict.fromkeys(leaves)) == declared


def test_a_job_adds_to_the_spec_only_what_the_spec_does_not_declare():
    """A field of the manifest that the job declared again could differ from its schema without a word."""
    own = {each.name for each in fields(Job)} - {each.name for each in fields(Spec)}
    assert own == {
        *("name", "namespace", "uid", "generation", "labels", "annotations"),
        *("args", "given_args", "warnings", "progress_push", "kueue_mode"),
        "has_container_restarts",
    }


def test_an_empty_object_becomes_the_defaults():
    given = structural.defaulted({"backoffSeconds": {}}, find_field(spec_schema(), "failurePolicy"))
    assert read(values.FailurePolicy, given) == values.FailurePolicy(
        max_restarts=3,
        reset_after_progress=True,
        backoff_initial_s=10,
        backoff_max_s=600,
        rules=(),
        hang_timeout_s=1800,
        node_exclusion=None,
        in_place_restart=True,
    )


def test_objects_and_lists_within_become_values_and_tuples():
    rdma = {"resource": "rdma/ib", "count": 2, "ipcLock": False}
    given = {"masterPort": 1234, "hostNetwork": True, "rdma": rdma, "multusNetworks": ["a", "b"]}
    assert read(values.Network, given) == values.Network(
        master_port=1234,
        host_network=True,
        rdma=values.Rdma(resource="rdma/ib", count=2, ipc_lock=False),
        multus_networks=("a", "b"),
        nccl_env={},
    )
    rules = [{"action": "FailJob", "onExitCodes": [3]}]
    assert read(values.Rule, rules[0]) == values.Rule(action="FailJob", exit_codes=(3,), reasons=())


def test_what_is_given_within_an_object_of_its_own_is_read():
    given = structural.defaulted(
        {"pvc": {"claimName": "c"}, "onTermination": {"save": False}}, find_field(spec_schema(), "checkpoint")
    )
    found = read(values.Checkpoint, given)
    assert (found.claim_name, found.claim_template, found.save_on_termination) == ("c", None, False)
    assert (found.grace_period_s, found.resume, found.mount_path) == (120, "Auto", "/checkpoints")
