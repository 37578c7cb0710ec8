"""The API server compiles the schema and its rules, and judges every rule's cases as Python does."""

import time

import pytest

from megatron_trainjob.args.parse import task_defaults
from megatron_trainjob.args.rules import RULES
from megatron_trainjob.args.schema import arguments_schema, cel_rules, spec_cel_rules
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from rule_cases import CASES

pytestmark = pytest.mark.cluster

GROUP, PLURAL = "tests.megatrontrain.dev", "arguments"
PATH = f"/apis/{GROUP}/v1/namespaces/default/{PLURAL}"
RUN = {"model": "m", "dataset": ["d"], "train_iters": 1000}
RUNNABLE = [case for case in CASES if RULES[case.rule].cel and case.task == "sft"]


def definition():
    spec = {
        "type": "object",
        "required": ["task"],
        "properties": {
            "task": {"type": "string", "maxLength": 8},
            "numNodes": {"type": "integer", "format": "int64"},
            "nprocPerNode": {"x-kubernetes-int-or-string": True},
            "args": {**arguments_schema(), "x-kubernetes-validations": cel_rules()},
        },
        "x-kubernetes-validations": spec_cel_rules(),
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
    }
    names = {"plural": PLURAL, "singular": "argument", "kind": "Argument"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    import control_plane

    plane = control_plane.start(tmp_path_factory.mktemp("control-plane"))
    try:
        plane.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition())
        deadline = time.monotonic() + 30
        while plane.get(PATH) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        yield plane
    finally:
        plane.stop()


def answer(server, args, **spec):
    """What the server says against these arguments, "" when it accepts them."""
    from control_plane import Refused

    body = {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Argument",
        "metadata": {"generateName": "a-"},
        "spec": {"task": "sft", **spec, "args": args},
    }
    try:
        server.create(PATH, body, dryRun="All", fieldValidation="Strict")
    except Refused as refused:
        return refused.message
    return ""


def written(values):
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def test_every_rule_judges_its_cases_as_python_does(server):
    wrong = []
    for case in RUNNABLE:
        rule, said = RULES[case.rule], f"{RULES[case.rule].about[0]} {RULES[case.rule].cel_message}"
        fill = {name: value for name, value in RUN.items() if name not in rule.about}
        if said in answer(server, {**fill, **written(case.good)}):
            wrong.append((case.rule, "rejects", case.good))
        if said not in answer(server, {**fill, **written(case.bad)}):
            wrong.append((case.rule, "accepts", case.bad))
    assert wrong == []


def test_every_default_written_out_is_accepted(server):
    defaults = {**vars(TrainArgs()), **task_defaults("sft"), **RUN}
    preference = {name for name, argument in ARGUMENTS.items() if argument.applies_to == ("rlhf",)}
    given = {name: value for name, value in defaults.items() if name not in preference}
    assert answer(server, written(given)) == ""


def test_null_counts_as_absent(server):
    assert answer(server, {**RUN, **dict.fromkeys(ARGUMENTS, None), **RUN}) == ""


def test_refused_arguments_and_values_come_with_their_reason(server):
    assert ARGUMENTS["freeze_vit"].reason in answer(server, {**RUN, "freeze_vit": False})
    assert "ckpt_format cannot be zarr: Megatron-Core no longer" in answer(server, {**RUN, "ckpt_format": "zarr"})


def test_other_names_are_accepted_and_unknown_ones_are_not(server):
    assert (
        answer(server, {"model": "m", "dataset": ["d"], "num_train_epochs": 2, "tuner_type": "lora", "lora_rank": 4})
        == ""
    )
    assert 'unknown field "spec.args.lrr"' in answer(server, {**RUN, "lrr": 1})


@pytest.mark.parametrize(
    ("spec", "accepted"),
    [
        ({"numNodes": 2, "nprocPerNode": 3}, True),
        ({"numNodes": 2, "nprocPerNode": 4}, False),
        ({"nprocPerNode": 3}, True),
        ({"numNodes": 2, "nprocPerNode": "auto"}, True),
        ({"numNodes": 2}, True),
    ],
)
def test_ranks_are_judged_when_their_number_is_known(server, spec, accepted):
    message = answer(server, {**RUN, "tensor_model_parallel_size": 3}, **spec)
    assert ("must be a multiple of tensor_model_parallel_size" in message) == (not accepted)


def test_arguments_of_preference_training_belong_to_its_task(server):
    assert "belong to task rlhf" in answer(server, {**RUN, "beta": 0.2})
    assert answer(server, {**RUN, "beta": 0.2}, task="rlhf") == ""
