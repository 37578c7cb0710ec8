"""CRD and admission policy on the real API server: every rule accepts what is right and rejects what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from local_cluster.control_plane import ControlPlane, Refused
from megatron_operator.api.schema.parts import changes
from megatron_operator.api.spec import spec_schema
from megatron_trainjob.args import yaml_file
from megatron_trainjob.args.admission import checks
from megatron_trainjob.args.field import TRAINING
from megatron_trainjob.args.parse import task_defaults
from megatron_trainjob.args.rules import RULES
from megatron_trainjob.args.tree import ARGUMENTS, TrainArgs
from tests.support.arguments.rule_cases import CASES
from tests.support.operator.job_client import API, ARGS, JobClient, manifest
from tests.support.operator.spec_samples import nested, samples

pytestmark = pytest.mark.cluster
JOBS = f"{API}/namespaces/default/megatrontrainjobs"
CRD = Path(__file__).parent.parent.parent / "crds" / "megatrontrainjob.yaml"
CEL_CASES = [
    case
    for case in CASES
    if RULES[case.rule].cel and RULES[case.rule].severity == "error" and set(TRAINING) <= set(RULES[case.rule].tasks)
]
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/trainjob.yaml"))
OTHER_VALUES = {"int": 7, "float": 0.7, "str": "x", "list[str]": ["x"], "json": {"a": 1}}


def another_value(argument) -> object:
    """A value of the argument's type that is not its default."""
    if argument.choices:
        return next(choice for choice in argument.choices if choice != argument.default)
    return not argument.default if argument.type == "bool" else OTHER_VALUES[argument.type]


REFUSALS = [
    (name, another_value(argument))
    for name, argument in ARGUMENTS.items()
    if argument.status == "refused" and set(TRAINING) <= set(argument.applies_to)
]
REFUSED_CHOICES = [(name, choice) for name, argument in ARGUMENTS.items() for choice in argument.refused_choices]
CLAIM = {"claimName": "data"}


def problems(plane: ControlPlane, body: dict) -> str:
    """What the server says against creating this, "" when nothing. Nothing is stored."""
    try:
        plane.create(JOBS, body, dryRun="All")
    except Refused as refused:
        if refused.status != 422:
            raise
        return refused.message
    return ""


def with_args(case, values: dict) -> dict:
    """A manifest with the case's arguments; those that the rule is about are otherwise unset."""
    base = {name: value for name, value in ARGS.items() if name not in RULES[case.rule].about}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return manifest(task=case.task, args={**base, **given})


@pytest.mark.parametrize("case", CEL_CASES, ids=[f"{case.rule}-{index}" for index, case in enumerate(CEL_CASES)])
def test_a_rule_between_arguments_accepts_and_rejects(plane: ControlPlane, case):
    message = f"{RULES[case.rule].about[0]} {RULES[case.rule].cel_message}"
    assert message not in problems(plane, with_args(case, case.good))
    assert message in problems(plane, with_args(case, case.bad))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_server_takes_every_example(plane: ControlPlane, example: Path):
    assert problems(plane, yaml_file.load(example)) == ""


WARNED_CASES = [
    case
    for case in CASES
    if RULES[case.rule].cel and RULES[case.rule].severity == "warning" and set(TRAINING) <= set(RULES[case.rule].tasks)
    if ARGUMENTS[RULES[case.rule].about[0]].status != "no effect"  # which is said instead
]


@pytest.mark.parametrize("case", WARNED_CASES, ids=[f"{case.rule}-{index}" for index, case in enumerate(WARNED_CASES)])
def test_what_changes_nothing_is_accepted_and_the_client_is_warned(plane: ControlPlane, case):
    message = f"{RULES[case.rule].about[0]} {RULES[case.rule].cel_message}"
    problems(plane, with_args(case, case.bad))
    assert message in " ".join(plane.warnings)
    problems(plane, with_args(case, case.good))
    assert message not in " ".join(plane.warnings)


@pytest.mark.parametrize(("name", "value"), REFUSALS, ids=[name for name, _ in REFUSALS])
def test_an_argument_that_can_never_work_is_refused_with_the_reason(plane: ControlPlane, name: str, value: object):
    assert f"{name} is refused: {ARGUMENTS[name].reason}" in problems(plane, manifest(args={**ARGS, name: value}))


@pytest.mark.parametrize(
    ("name", "choice"), REFUSED_CHOICES, ids=[f"{name}={choice}" for name, choice in REFUSED_CHOICES]
)
def test_a_choice_that_can_never_work_is_refused_with_the_reason(plane: ControlPlane, name: str, choice: object):
    argument = ARGUMENTS[name]
    value = [choice] if argument.type.startswith("list") else choice
    assert argument.refused_choices[choice] in problems(plane, manifest(args={**ARGS, name: value}))


def test_no_check_of_the_policy_is_left_without_a_case():
    tested = {f"spec.args.{RULES[case.rule].about[0]} {RULES[case.rule].cel_message}" for case in CEL_CASES}
    refused = {f"spec.args.{name} is refused: {ARGUMENTS[name].reason}" for name, _ in REFUSALS}
    left = [check.message for check in checks() if check.message not in tested | refused]
    reasons = [ARGUMENTS[name].refused_choices[choice] for name, choice in REFUSED_CHOICES]
    others = ("belong to task rlhf; remove them or change the task", "* context_parallel_size", *reasons)
    assert [message for message in left if not message.endswith(others)] == []


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"args": {**ARGS, "tensor_model_paralel_size": 8}}, "spec.args.tensor_model_paralel_size"),
        ({"numNode": 8}, "spec.numNode"),
        ({"checkpoint": {"pvc": {"claim": "data"}}}, "spec.checkpoint.pvc.claim"),
        ({"failurePolicy": {"backoffSeconds": {"first": 1}}}, "spec.failurePolicy.backoffSeconds.first"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_misspelt_name_is_refused_whatever_the_client_asks_for(plane: ControlPlane, spec: dict, path: str):
    """Not only to kubectl, which asks the server to be strict: GitOps tools and client libraries do not."""
    assert f"{path}: unknown field" in problems(plane, manifest(**spec))


def test_the_policy_says_every_problem_at_once(plane: ControlPlane):
    said = problems(plane, manifest(numNode=8, nprocPerNode=3, args={"tensor_paralel": 2}))
    for part in ("spec.numNode:", "spec.args.tensor_paralel:", "spec.args.model", "dataset"):
        assert part in said


def test_every_default_written_out_is_accepted(plane: ControlPlane):
    others = {name for name, argument in ARGUMENTS.items() if argument.essential and "sft" not in argument.applies_to}
    defaults = {**vars(TrainArgs()), **task_defaults("sft")}
    given = {name: value for name, value in defaults.items() if name not in others}
    args = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    assert problems(plane, manifest(args={**args, **ARGS})) == ""


def test_null_counts_as_absent(plane: ControlPlane):
    assert problems(plane, manifest(args={**dict.fromkeys(ARGUMENTS), **ARGS})) == ""


@pytest.mark.parametrize(
    ("spec", "accepted"),
    [
        ({"numNodes": 2, "nprocPerNode": 3}, True),
        ({"numNodes": 2, "nprocPerNode": 4}, False),
        ({"nprocPerNode": 3}, True),
        ({"numNodes": 2, "nprocPerNode": "auto"}, True),
    ],
)
def test_ranks_are_judged_when_their_number_is_known(plane: ControlPlane, spec: dict, accepted: bool):
    said = problems(plane, manifest(args={**ARGS, "tensor_model_parallel_size": 3}, **spec))
    assert ("must be a multiple of tensor_model_parallel_size" in said) == (not accepted)


def test_arguments_of_preference_training_belong_to_its_task(plane: ControlPlane):
    assert "belong to task rlhf" in problems(plane, manifest(args={**ARGS, "rlhf_type": "dpo"}))
    assert "belong to task rlhf" not in problems(plane, manifest(task="rlhf", args={**ARGS, "rlhf_type": "dpo"}))


def test_a_detail_of_preference_training_is_accepted_elsewhere_with_a_warning(plane: ControlPlane):
    assert problems(plane, manifest(args={**ARGS, "beta": 0.2})) == ""
    assert plane.warnings
    assert "spec.args.beta has no effect: it applies to rlhf only" in " ".join(plane.warnings)
    assert problems(plane, manifest(task="rlhf", args={**ARGS, "beta": 0.2})) == ""
    assert "beta" not in " ".join(plane.warnings)


def test_a_request_for_what_is_done_anyway_is_accepted(plane: ControlPlane):
    split = {**ARGS, "context_parallel_size": 2}
    assert problems(plane, manifest(args={**split, "sequence_parallel_size": 2})) == ""
    assert "sequence_parallel_size is refused" in problems(plane, manifest(args={**split, "sequence_parallel_size": 4}))
    adapters = {**ARGS, "train_type": "lora", "load": "/c"}
    assert problems(plane, manifest(task="rlhf", args={**adapters, "ref_load": "/c"})) == ""
    assert "ref_load cannot" in problems(plane, manifest(task="rlhf", args={**adapters, "ref_load": "/d"}))
    reward = {**ARGS, "rlhf_type": "rm"}
    assert problems(plane, manifest(task="rlhf", args={**reward, "num_labels": 1})) == ""
    assert "num_labels needs" in problems(plane, manifest(task="rlhf", args={**reward, "num_labels": 2}))


@pytest.mark.parametrize("given", [{"tp_comm_overlap": True}, {"moe_enable_deepep": True}, {"fp8_recipe": "mxfp8"}])
def test_no_fact_is_told_twice(plane: ControlPlane, given: dict):
    problems(plane, manifest(args={**ARGS, **given}))
    assert " ".join(plane.warnings).count(f"spec.args.{next(iter(given))} ") == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (manifest("x" * 46), "must not be longer than 45 characters"),
        (manifest("1st"), "must start with a letter"),
        (manifest(task="dpo"), "Unsupported value"),
        (manifest(numNodes=0), "should be greater than or equal to 1"),
        (manifest(args={**ARGS, "lr": "fast"}), "must be of type number"),
        (manifest(args={**ARGS, "micro_batch_size": 0}), "should be greater than or equal to 1"),
        (manifest(args={**ARGS, "optimizer": "adagrad"}), "Unsupported value"),
        (
            manifest(nprocPerNode=4, args={**ARGS, "tensor_model_parallel_size": 3}),
            "must be a multiple of tensor_model",
        ),
        (manifest(args={**ARGS, "loss_types": ["ipo"]}), "belong to task rlhf"),
        (manifest(checkpoint={"pvc": {**CLAIM, "template": {"spec": {}}}}), "accepts claimName or template, not both"),
        (manifest(runPolicy={"activeDeadlineSeconds": -1}), "should be greater than or equal to"),
        (manifest(failurePolicy={"rules": [{"action": "Explode"}]}), "Unsupported value"),
        (manifest(scheduling={"gang": "Slurm"}), "Unsupported value"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value)[:40] if isinstance(value, str) else "",
)
def test_the_schema_refuses_what_no_job_can_be(plane: ControlPlane, body: dict, message: str):
    assert message in problems(plane, body)


def test_a_plain_manifest_is_accepted_and_keeps_what_was_not_said_unsaid(plane: ControlPlane):
    created = plane.create(JOBS, manifest(), dryRun="All")
    assert created["spec"]["args"] == ARGS
    assert "failurePolicy" not in created["spec"]


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        ({}, {"task": "pt"}, "is immutable"),
        ({}, {"managedBy": "kueue.x-k8s.io/multikueue"}, "managedBy is immutable"),
        ({"checkpoint": {"pvc": CLAIM}}, {"checkpoint": {"pvc": {"claimName": "other"}}}, "is immutable"),
        ({}, {"checkpoint": {"pvc": CLAIM}}, "checkpoint.pvc is immutable"),
        ({}, {"args": {"lr": 0.1}}, "args changes only while spec.suspend is true"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_what_the_running_gang_was_built_from_changes_only_while_suspended(
    jobs: JobClient, spec: dict, change: dict, message: str
):
    jobs.submit(
        manifest(
            managedBy="kueue.x-k8s.io/multikueue" if "managedBy" not in change else "megatrontrain.dev/operator",
            suspend="managedBy" in change,
            **spec,
        )
    )
    with pytest.raises(Refused, match=re.escape(message)):
        jobs.patch("job", **change)
    if "changes only while" in message:
        jobs.patch("job", suspend=True)
        jobs.patch("job", **change)


def test_every_field_changes_when_its_declaration_says_and_not_before(jobs: JobClient):
    """Each field of spec alone, on a job that runs and on one that is suspended; nothing is stored."""
    running = manifest(managedBy="kueue.x-k8s.io/multikueue", checkpoint={"pvc": CLAIM})
    jobs.submit(running)
    jobs.submit({**running, "metadata": {"name": "suspended"}, "spec": {**running["spec"], "suspend": True}})
    when = dict(changes(spec_schema()))
    wrong = {}
    for path, value in samples():
        body = {"spec": nested(path, other_than(running["spec"], path, value))}
        expected = {"Always": ("", ""), "Never": ("is immutable", "is immutable")}.get(
            when[path], (f"{path.split('.')[0]} changes only while spec.suspend is true", "")
        )
        for name, message in zip(("job", "suspended"), expected, strict=True):
            said = refusal(jobs, name, body)
            if (message not in said) if message else ("changes only while" in said or "is immutable" in said):
                wrong[name, path] = said
    assert wrong == {}


def other_than(spec: dict, path: str, value: object) -> object:
    """The sample, or another value where the job has that one already."""
    known = {
        "managedBy": "megatrontrain.dev/operator",
        "task": "pt",
        "image": "other",
        "numNodes": 4,
        "checkpoint.pvc": {"claimName": "other"},
    }
    return known.get(path, value)


def refusal(jobs: JobClient, name: str, body: dict) -> str:
    """What the server says against this merge patch, "" when it takes it; nothing is stored."""
    try:
        jobs.plane.merge(jobs.path("megatrontrainjobs", name) + "?dryRun=All", body)
    except Refused as refused:
        return str(refused)
    return ""


def test_every_field_that_must_wait_is_named_at_once(jobs: JobClient):
    jobs.submit(manifest(managedBy="kueue.x-k8s.io/multikueue"))
    with pytest.raises(Refused) as refused:
        jobs.patch("job", image="other", env=[{"name": "A", "value": "b"}], runPolicy={"ttlSecondsAfterFinished": 5})
    assert re.findall(r"spec\.(\w+) changes only while", str(refused.value)) == ["image", "env"]


def test_the_crd_fits_into_the_annotation_that_kubectl_apply_writes():
    compact = json.dumps(yaml.safe_load(CRD.read_text()), separators=(",", ":"))
    assert len(compact) < 150_000


def test_the_page_shows_what_the_server_says_to_a_wrong_manifest(plane: ControlPlane):
    page = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
    shown = page.split("$ kubectl apply -f wrong.yaml\n")[1].split("```")[0]
    warnings, errors = (re.findall(r"^  (.*)$", part, flags=re.MULTILINE) for part in shown.split("The megatrontrain"))
    wrong = {"tensor_model_paralel_size": 2, "lora_rank": 4}
    refusal = problems(plane, manifest("wrong", numNode=2, args={**ARGS, **wrong}))
    assert refusal.endswith("denied request: " + "; ".join(errors))
    assert (len(warnings), len(errors)) == (1, 2)
    assert warnings[0] in " ".join(plane.warnings)
