"""Files that a script writes with simple programs: `echo "megatron sft ..." > train.sh`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tree_sitter import Node

from megatron_operator.translate.shell.literal import plain
from megatron_operator.translate.shell.nodes import source
from megatron_operator.translate.shell.state import Reader
from megatron_operator.translate.shell.words import text_of, written_by


def keep(reader: Reader, node: Node, redirects: Sequence[Node]) -> None:
    """The file of `echo "..." > train.sh`, where its text is known."""
    to_files = [each for each in redirects if re.match(r"1?>", source(each)) and "&" not in source(each)]
    if len(to_files) != len(redirects) or len(to_files) != 1:
        return
    text = written_by(node.named_children[0], reader.values, None)
    target = to_files[0].child_by_field_name("destination")
    if text is not None and target is not None:
        name = plain(text_of(target, reader.values))
        before = reader.files.get(name, "") if ">>" in source(to_files[0]) else ""
        reader.files[name] = before + plain(text)
