"""The syntax tree of a shell script, and whether a text is left to a shell."""

from __future__ import annotations

import re

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

_PARSER = Parser(Language(tree_sitter_bash.language()))


def parsed(script: str) -> Node:
    """The syntax tree of a script."""
    return _PARSER.parse(script.encode()).root_node


def source(node: Node) -> str:
    """The node as it is written."""
    return (node.text or b"").decode()


def is_evaluated(text: str) -> bool:
    """Whether nothing in it is left to a shell."""
    return not re.search(r"\$(?:[\w@*#({]|\[[^\]]+\])|`", text)
