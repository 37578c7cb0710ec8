"""Nothing that the reference states about arguments is forgotten."""

from pathlib import Path

import yaml

from megatron_trainjob.args.rules import RULES
from tests.support.arguments.reference_statements import RULED, STATES, UNRULED

REFERENCE = Path(__file__).parent / "reference"
ENTRIES = [
    entry
    for name in ("arguments.yaml", "base_arguments.yaml")
    for entry in yaml.safe_load((REFERENCE / name).read_text())["arguments"]
]
STATED = {(entry["name"], text) for entry in ENTRIES for state in STATES for text in entry.get(state) or ()}


def test_every_statement_has_a_rule_or_a_reason_why_not():
    assert {*RULED, *UNRULED} == STATED
    assert not set(RULED) & set(UNRULED)


def test_the_rule_of_a_statement_is_about_its_argument():
    assert set(RULED.values()) <= set(RULES)
    assert [(name, rule) for (name, _), rule in RULED.items() if name not in RULES[rule].about] == []
