"""The ValidatingAdmissionPolicy next to the CRD: unknown names and rules between fields, checked when spec changes.

The API server evaluates it itself, without a webhook. It reports every problem in one message, as the webhook
does; spelling suggestions and checks that traverse lists of objects are left to webhook and operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import batched
from typing import Any

from megatron_operator.api import names
from megatron_operator.api.schema.parts import changes
from megatron_operator.api.spec import spec_schema
from megatron_trainjob.args import admission
from megatron_trainjob.args import schema as arguments
from megatron_trainjob.args.rules.condition import cel_literal

Object = dict[str, Any]
NAME = f"{names.PLURAL}.{names.GROUP}"
KUBERNETES = "admissionregistration.k8s.io/v1"
SPEC_CHANGED = "oldObject == null || object.spec != oldObject.spec"
UNKNOWN = "unknown field; kubectl explain mtj.spec --recursive lists the known ones"
GROUP_SIZE = 12
FIXED = "changes only while spec.suspend is true; suspend first"


def documents() -> tuple[Object, ...]:
    """The policies for problems and for warnings, each with a cluster-wide binding."""
    return (
        policy(NAME, _variables(), failure="Fail"),
        _binding(NAME, "Deny"),
        policy(f"warnings.{NAME}", _remarks(), failure="Ignore"),
        _binding(f"warnings.{NAME}", "Warn"),
    )


def _binding(name: str, action: str) -> Object:
    return {
        "apiVersion": KUBERNETES,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": [action]},
    }


def policy(name: str, variables: list[Object], *, failure: str) -> Object:
    """A policy over the variable `problems`, a list of texts.

    A job whose spec is unchanged may always be written: rules get stricter over time.
    """
    rule = {
        "apiGroups": [names.GROUP],
        "apiVersions": [names.VERSION],
        "operations": ["CREATE", "UPDATE"],
        "resources": [names.PLURAL],
    }
    return {
        "apiVersion": KUBERNETES,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": failure,
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "spec-changed", "expression": SPEC_CHANGED}],
            "variables": variables,
            "validations": [
                {
                    "expression": "size(variables.problems) == 0",
                    "messageExpression": "variables.problems.join('; ')",
                    "message": "too many problems for one message; mtj validate FILE lists them all",
                    "reason": "Invalid",
                }
            ],
        },
    }


def _variables() -> list[Object]:
    unknown = " + ".join(_unknown(path, known) for path, known in records())
    expressions = {
        "spec": "object.spec",
        "args": "object.spec.?args.orValue({})",
        "unknown": unknown,
        "resizes": f"oldObject != null && {stays_within_bounds('object.spec', 'oldObject.spec')}",
        "fixed": _fixed(),
        "problems": f"variables.unknown.map(path, path + ': {UNKNOWN}')"
        f" + variables.fixed.map(name, 'spec.' + name + ' {FIXED}') + {_messages(admission.checks())}",
    }
    return [{"name": name, "expression": expression} for name, expression in expressions.items()]


def _remarks() -> list[Object]:
    """The variables of the policy that only warns about fields."""
    expressions = {
        "spec": "object.spec",
        "args": "object.spec.?args.orValue({})",
        "problems": _messages(admission.remarks()),
    }
    return [{"name": name, "expression": expression} for name, expression in expressions.items()]


def _messages(checks: Sequence[admission.Check]) -> str:
    """The messages of the checks that do not hold, as a list.

    Most checks are in groups that are evaluated only if one of their arguments is given: most jobs give few
    of them, and evaluating a check costs the server about 10 microseconds of CPU time.
    """
    of_arguments = sorted((each for each in checks if each.is_idle), key=lambda each: each.arguments)
    always = [each for each in checks if not each.is_idle]
    lists = [f"({_is_any_given(part)} ? {_texts(part)} : [])" for part in batched(of_arguments, GROUP_SIZE)]
    return f"({' + '.join([_texts(always), *lists])}).filter(message, message != '')"


def _is_any_given(checks: Iterable[admission.Check]) -> str:
    arguments = {name for each in checks for name in each.arguments}
    return f"{admission.ARGS}.exists(name, name in {cel_literal(tuple(sorted(arguments)))})"


def _texts(checks: Iterable[admission.Check]) -> str:
    """The message of each check that fails, an empty text for each that holds."""
    texts = (f"{each.holds} ? '' : {cel_literal(each.message)}" for each in checks)
    return f"[{', '.join(texts)}]"


def _fixed() -> str:
    """The fields that changed although the old job is not suspended."""
    fields = cel_literal(changed_while_suspended())
    may_change = "oldObject == null || oldObject.spec.?suspend.orValue(false)"
    is_new = "object.spec[?name] != oldObject.spec[?name] && !(name == 'numNodes' && variables.resizes)"
    return f"{may_change} ? [] : {fields}.filter(name, {is_new})"


def stays_within_bounds(new: str, old: str) -> str:
    """CEL: whether the size of an elastic job is within the bounds from before the change."""
    low, high = f"{old}.elasticPolicy.minNodes", f"{old}.elasticPolicy.maxNodes"
    return f"has({old}.elasticPolicy) && {new}.numNodes >= {low} && {new}.numNodes <= {high}"


def changed_while_suspended() -> tuple[str, ...]:
    """Pod-shaping fields of spec: mutable only while there are no pods, as with Job and Kueue."""
    declared = [name for name, when in changes(spec_schema()) if "." not in name and when == "WhileSuspended"]
    return ("args", *declared)


def _unknown(path: str, known: list[str]) -> str:
    """The paths of the unknown names in this object, as a list."""
    record = "object" + "".join(f".?{part}" for part in path.split(".")) + ".orValue({})"
    return f"{record}.filter(name, !(name in {cel_literal(tuple(known))})).map(name, '{path}.' + name)"


def records() -> Iterator[tuple[str, list[str]]]:
    """(path, known names) of every object of the manifest that we define, except in lists."""
    spec = spec_schema()
    with_args = {**spec, "properties": {**spec["properties"], "args": arguments.arguments_schema()}}
    yield from _records(with_args, "spec")


def _records(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, list[str]]]:
    if schema.get("x-record"):
        yield path, sorted(schema["properties"])
        for name, part in schema["properties"].items():
            yield from _records(part, f"{path}.{name}")
