"""What a script sets, exports and makes local: `NAME=value`, arrays, `export`, `declare`, `local`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tree_sitter import Node

from megatron_operator.translate.programs import ASSIGNMENT
from megatron_operator.translate.shell.nodes import parsed, source
from megatron_operator.translate.shell.state import Outer, Reader
from megatron_operator.translate.shell.values import Values
from megatron_operator.translate.shell.words import key_of, text_of, words

EXPORTING = re.compile(r"(?:export|(?:declare|typeset|local|readonly)\s+-\w*x)\b")
HIDING = re.compile(r"(?:export\s+-\w*n|(?:declare|typeset)\s+\+x)\b")
LOCAL = re.compile(r"local\b|(?:declare|typeset)\b(?!\s+-\w*g)")
KEYED = re.compile(r"\[(?P<key>[^\]]+)\]=(?P<value>.*)", re.DOTALL)


def assign(reader: Reader, node: Node) -> None:
    """`NAME=value`, `NAME+=value`, `NAME=(...)`, `NAME[0]=value`."""
    name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
    if name is None:
        return
    adds = any(child.type == "+=" for child in node.children)
    values, key = reader.values, source(name)
    if value is not None and not adds and _lengthens_nothing(values, key, value):
        values.variables[key] = ""
        reader.tell(node, f"{key} has no value before this line, which adds to it; it is taken as empty")
    if value is not None and value.type == "array":
        listed = _elements(value, key, values)
        values.arrays[key] = _appended(values.arrays.get(key, {}), listed) if adds else listed
        values.variables.pop(key, None)
        return
    text = "" if value is None else text_of(value, values)
    values.assumed.discard(key)
    if reader.exports_all:
        reader.exported.add(key)
    if name.type == "subscript":
        base, _, index = key.removesuffix("]").partition("[")
        array, place = values.arrays.setdefault(base, {}), key_of(values, base, index)
        array[place] = array.get(place, "") + text if adds else text
        return
    if adds and key in values.arrays:
        values.arrays[key]["0"] = values.arrays[key].get("0", "") + text
        return
    values.arrays.pop(key, None)
    values.variables[key] = values.variables.get(key, "") + text if adds else text


def _lengthens_nothing(values: Values, name: str, value: Node) -> bool:
    """Whether it is `ARGS="$ARGS --flag"` of a name that the script has not set; `DIR=$DIR/x` has one of its caller."""
    is_known = name in values.variables or name in values.arrays
    own = rf"\$(?:{name}\b|\{{{name}\}})"
    return not is_known and re.search(rf"^[\"']?{own}\s|\s{own}[\"']?$", source(value)) is not None


def _elements(node: Node, name: str, values: Values) -> dict[str, str]:
    """The elements of `(a b)` by their number, of `([key]=value)` by their key."""
    found: dict[str, str] = {}
    for child in (each for each in node.named_children if each.type != "comment"):
        keyed = KEYED.fullmatch(source(child))
        if keyed is None:
            found = _appended(found, dict(enumerate(words(child, values))))
        else:
            value = parsed(f"x={keyed['value']}\n").named_children[0].child_by_field_name("value")
            found[key_of(values, name, keyed["key"])] = "" if value is None else text_of(value, values)
    return found


def declare(reader: Reader, node: Node) -> None:
    """`export NAME=value`, `export NAME`, `declare -x NAME=value`, `local NAME=value`."""
    written = source(node)
    if reader.locals is not None and LOCAL.match(written):
        _keep_outer(reader, [source(child.child_by_field_name("name") or child) for child in node.named_children])
    if re.match(r"(declare|typeset|local)\s+-\w*A", written):
        reader.values.tables |= {source(c.child_by_field_name("name") or c) for c in node.named_children}
    is_reference = re.match(r"(?:declare|typeset|local)\s+-\w*n", written) is not None
    for child in node.named_children:
        if child.type == "variable_assignment":
            assign(reader, child)
            _refer(reader, child) if is_reference else None
        for word in words(child, reader.values) if child.type in ("command_substitution", "concatenation") else ():
            if (found := ASSIGNMENT.fullmatch(word)) is not None:  # export $(cat .env | xargs)
                reader.values.variables[found["name"]] = found["value"]
                reader.exported.add(found["name"])
        named = child.child_by_field_name("name") or child
        if named.type == "variable_name" and HIDING.match(written):
            reader.exported.discard(source(named))
        elif named.type == "variable_name" and EXPORTING.match(written):
            reader.exported.add(source(named))


def _refer(reader: Reader, node: Node) -> None:
    """`local -n NAME=other`: the value of the other; what is set through it later is not seen there."""
    name = source(node.child_by_field_name("name") or node)
    other = reader.values.variables.get(name, "")
    if other in reader.values.arrays:
        reader.values.arrays[name] = dict(reader.values.arrays[other])
        reader.values.variables.pop(name)
    elif other in reader.values.variables:
        reader.values.variables[name] = reader.values.variables[other]


def _keep_outer(reader: Reader, names: Sequence[str]) -> None:
    """Remembers what names mean outside of the function that makes them its own."""
    assert reader.locals is not None
    values = reader.values
    for name in names:
        outer = Outer(values.variables.get(name), values.arrays.get(name), name in reader.exported)
        reader.locals.setdefault(name, outer)


def restore_outer(reader: Reader, kept_names: Mapping[str, Outer]) -> None:
    """Gives the names back what they meant outside."""
    for name, outer in kept_names.items():
        reader.values.variables.pop(name, None)
        reader.values.arrays.pop(name, None)
        reader.values.variables |= {} if outer.text is None else {name: outer.text}
        reader.values.arrays |= {} if outer.array is None else {name: outer.array}
        if not outer.is_exported:
            reader.exported.discard(name)


def _appended(array: Mapping[str, str], others: Mapping[Any, str]) -> dict[str, str]:
    """The array with others behind its last number; those with keys of their own keep them."""
    if not all(str(key).isdigit() for key in (*array, *others)):
        return {**array, **{str(key): value for key, value in others.items()}}
    start = max(map(int, array), default=-1) + 1
    return {**array, **{str(start + place): value for place, value in enumerate(others.values())}}
