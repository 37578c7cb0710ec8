"""House words that must not come back: docs, comments, messages and names use the terms of the field."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (".py", ".md", ".yaml", ".tpl", ".sh", ".Dockerfile", ".toml")
QUOTED = (
    "tests/megatron_trainjob/reference/",
    "tests/support/arguments/",
    "tests/support/data/chat_templates",
    "benchmarks/results/",
)
"""Other programs' words, and dated measurements."""

EVERYWHERE = {
    r"anew": "again, start over",
    r"for ever|for_ever": "forever, indefinitely",
    r"nobody": "no one",
    r"stands? still|stood still": "stall",
    r"(gone|goes|go|going) on from": "continue from",
    r"the one who is paged": "the on-call engineer",
    r"played kubelets?|plays the kubelets?": "fake kubelet, simulates",
    r"(behaviou|colou|favou|neighbou)rs?|(tokeni|initiali|normali|seriali|utili|recogni)se[ds]?": "American spelling",
}
PRODUCT = {
    r"told|tells of|tell of": "emitted, reported, notified",
    r"mirrors?|mirrored": "cache",
    r"(at a|next|first|one) look": "reconcile",
    r"stretch(es)?": "segment",
    r"draws? weights|weights are drawn": "initialize",
    r"give (it )?(as|the folder|another folder)": "pass, use",
    r"made again|makes? it again|make a new": "create",
    r"goes on|gone on": "continue",
    r"has no place for": "does not support",
    r"is no (folder|file|directory|number|list|mapping|object|JSON)": "is not a ...",
}
"""Only in what is installed or read by users: operator/, trainer/, docs/, charts/ and the pages of the root."""


def tracked() -> list[str]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [
        name
        for name in names
        if name.endswith(TEXT) and not name.startswith(QUOTED) and name != "tests/test_english.py"
    ]


def test_house_words_do_not_come_back():
    product = {**EVERYWHERE, **PRODUCT}
    found = []
    for name in tracked():
        words = (
            product if name.startswith(("operator/", "trainer/", "docs/", "charts/")) or "/" not in name else EVERYWHERE
        )
        pattern = re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1):
            for match in pattern.finditer(line):
                better = next(text for word, text in words.items() if re.fullmatch(word, match[0], re.IGNORECASE))
                found.append(f"{name}:{number}: {match[0]!r}, write: {better}")
    assert found == [], "\n".join(found)
