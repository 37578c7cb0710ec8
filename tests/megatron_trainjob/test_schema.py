"""The schema of spec.args: structural, bounded, complete, and without defaults."""

import json
import re

from megatron_trainjob.args.admission import checks, remarks
from megatron_trainjob.args.names import ALIASES
from megatron_trainjob.args.rules import RULES
from megatron_trainjob.args.schema import arguments_schema
from megatron_trainjob.args.tree import ARGUMENTS

PROPERTIES = arguments_schema()["properties"]


def nodes(schema):
    """The schema and everything inside it."""
    yield schema
    for child in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        yield from nodes(child)


def test_schema_has_every_argument_and_every_other_name():
    assert set(PROPERTIES) == {*ARGUMENTS, *ALIASES}


def test_schema_sets_no_defaults_and_leaves_nulls_to_the_server():
    assert not [node for node in nodes(arguments_schema()) if "default" in node or "nullable" in node]


def test_every_node_is_structural():
    def is_structural(node):
        return "type" in node or node.get("x-kubernetes-preserve-unknown-fields") is True

    assert all(is_structural(node) for node in nodes(arguments_schema()))


def test_every_text_list_and_object_has_a_bound():
    bounds = {"string": ("enum", "maxLength"), "array": ("maxItems",), "object": ("maxProperties", "properties")}
    unbound = [
        node
        for node in nodes(arguments_schema())
        if node.get("type") in bounds and not set(bounds[node["type"]]) & set(node)
    ]
    assert unbound == []


def test_types_choices_and_ranges_are_those_of_the_arguments():
    def shape(name):
        return {key: value for key, value in PROPERTIES[name].items() if key != "description"}

    assert shape("train_iters") == {"type": "integer", "format": "int64", "minimum": 1}
    assert shape("lr") == {"type": "number", "minimum": 0, "exclusiveMinimum": True}
    assert shape("label_smoothing") == {"type": "number", "minimum": 0, "maximum": 0.5, "exclusiveMaximum": True}
    assert shape("lr_decay_style") == {"type": "string", "enum": ["cosine", "linear", "constant", "WSD"]}
    assert {"last_round+ignore_empty_think", "default+react", "qwen"} <= {*shape("loss_scale")["enum"]}
    assert shape("packing") == {"type": "boolean"}
    assert shape("dataset") == {"type": "array", "maxItems": 256, "items": {"type": "string", "maxLength": 4096}}
    assert shape("columns") == {
        "type": "object",
        "maxProperties": 64,
        "x-kubernetes-preserve-unknown-fields": True,
    }
    assert shape("rope_scaling") == {"x-kubernetes-preserve-unknown-fields": True}
    assert shape("save_steps") == shape("save_interval")


def test_descriptions_are_one_line_with_unit_and_reason_of_refusal():
    assert PROPERTIES["eval_interval"]["description"] == (
        "Training steps between two evaluations; unset: save_interval. Unit: steps."
    )
    assert PROPERTIES["hub_token"]["description"].endswith(
        "Refused: a manifest must not contain a secret; pass HF_TOKEN to the pods from a Secret through envFrom."
    )
    assert PROPERTIES["bias_dropout_fusion"]["description"] == (
        "ms-swift 4.x name of the opposite of no_bias_dropout_fusion."
    )


def test_schema_leaves_room_for_the_rest_of_the_definition():
    """The whole definition must stay below 150 KB, of which the pod template takes 60."""
    size = len(json.dumps(arguments_schema(), separators=(",", ":")))
    assert size < 66_000


def test_every_pair_rule_of_training_has_its_form_in_cel():
    pairs = [rule for rule in RULES.values() if rule.cel and set(rule.tasks) >= {"pt", "sft", "rlhf"}]
    known = [check.holds for check in (*checks(), *remarks())]
    told = [rule for rule in pairs if rule.severity == "error" or ARGUMENTS[rule.about[0]].status != "no effect"]
    wanted = [rule.cel.replace("self.", "variables.args.") for rule in told]
    # In front of it may stand where the argument asks for what is done anyway.
    assert [cel for cel in wanted if not any(each == cel or each.endswith(f" || {cel}") for each in known)] == []
    assert len(pairs) > 80


def test_checks_say_where_the_problem_is():
    blamed = [re.match(r"(spec\.args\.\w+) |spec(\.args)?: ", check.message) for check in (*checks(), *remarks())]
    assert all(blamed)
    assert {found[1].rpartition(".")[2] for found in blamed if found[1]} <= set(PROPERTIES)


def test_pair_rule_reads_other_names_too():
    expression = RULES["lora_rank_belongs_to_lora"].cel
    assert expression == (
        "!(has(self.lora_rank) && self.lora_rank != 8) || (has(self.tuner_type) ?"
        " self.tuner_type in ['lora', 'lora_llm'] : (has(self.train_type) && self.train_type in ['lora', 'lora_llm']))"
    )
