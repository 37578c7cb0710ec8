"""Random MegatronTrainJobs from a seed, made from the CRD's own schema: most fields right, some wrong in every way."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_trainjob.args.tree import ARGUMENTS
from tests.support.operator.job_client import manifest

Schema = Mapping[str, Any]
CRD = Path(__file__).parents[3] / "crds" / "megatrontrainjob.yaml"
WRONG: tuple[object, ...] = (None, True, -1, 0, 10**9, 1.5, "", "x", "a b/c", "1e-5", [], ["x", 3], {}, {"a": {"b": 1}})
WORDS = ("a", "data", "x-1", "/models/tiny", "0", "8", "64Gi", "nvidia.com/gpu")
DEPTH = 5


def spec_schema() -> Schema:
    """The schema of spec, as the API server has it."""
    definition = yaml.safe_load(CRD.read_text())
    schema: Schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def any_manifest(schema: Schema, draw: random.Random, name: str) -> dict[str, Any]:
    """One manifest: a valid one, with a few fields of spec and a few arguments drawn at random."""
    body = manifest(name)
    fields = sorted(set(schema["properties"]) - {"args"})
    for field in draw.sample(fields, draw.randint(0, 4)):
        body["spec"][field] = value(schema["properties"][field], draw, wrongness=0.08)
    arguments = {
        argument: draw_argument(argument, draw) for argument in draw.sample(sorted(ARGUMENTS), draw.randint(0, 5))
    }
    if "args" in body["spec"]:
        body["spec"]["args"] = {**body["spec"]["args"], **arguments}
    if draw.random() < 0.05:
        body["spec"][draw.choice(sorted(body["spec"]))] = draw.choice(WRONG)
    return body


def draw_argument(name: str, draw: random.Random) -> object:
    """A value of the argument's type most of the time."""
    argument = ARGUMENTS[name]
    if draw.random() < 0.15:
        return draw.choice(WRONG)
    if argument.choices:
        choice = draw.choice(list(argument.choices))
        return [choice] if argument.is_list else choice
    kinds: dict[str, object] = {
        "int": draw.choice((0, 1, 2, 8, 1000)),
        "float": draw.choice((0, 0.1, 1.0, 1e-5)),
        "bool": draw.random() < 0.5,
        "str": draw.choice(WORDS),
        "list[str]": draw.sample(WORDS, draw.randint(0, 3)),
        "list[float]": [draw.random() for _ in range(draw.randint(0, 3))],
    }
    return kinds.get(argument.type, {"a": 1})


def value(schema: Schema, draw: random.Random, *, wrongness: float, depth: int = 0) -> Any:
    """A value of this schema, or with the given probability one of another kind."""
    if draw.random() < wrongness:
        return draw.choice(WRONG)
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return draw.choice((1, 8, "auto", "64Gi"))
    match schema.get("type"):
        case "object":
            return _object(schema, draw, wrongness=wrongness, depth=depth)
        case "array":
            count = 0 if depth >= DEPTH else draw.randint(0, 2)
            return [value(schema["items"], draw, wrongness=wrongness, depth=depth + 1) for _ in range(count)]
        case "integer":
            least = schema.get("minimum", 0)
            return draw.randint(least, min(schema.get("maximum", least + 100), least + 100))
        case "number":
            return draw.random()
        case "boolean":
            return draw.random() < 0.5
        case _:
            return draw.choice(WORDS)


def _object(schema: Schema, draw: random.Random, *, wrongness: float, depth: int) -> dict[str, Any]:
    """Required fields, and some of the others."""
    if "additionalProperties" in schema:
        inner = schema["additionalProperties"]
        return {draw.choice(WORDS): value(inner, draw, wrongness=wrongness, depth=depth + 1)}
    properties = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    optional = sorted(set(properties) - required)
    chosen = required | set(draw.sample(optional, min(len(optional), draw.randint(0, 2)) if depth < DEPTH else 0))
    return {name: value(properties[name], draw, wrongness=wrongness, depth=depth + 1) for name in sorted(chosen)}
