"""Manifests that would take all memory or time are refused within a second, with what is wrong."""

import time

import pytest

from megatron_trainjob.args.yaml_file import YamlProblem, parse_text

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
HOSTILE = {
    "aliases": (BOMB, "aliases expand to more than"),
    "an alias of itself": ("a: &a [*a, *a]\nb: " + "[*a, " * 30 + "]" * 30, "recursive"),
    "digits": ("lr: " + "1" * 100_000 + "x", None),
    "a long number": ("lr: " + "1" * 100_000, "cannot be read"),
    "digits and dots": ("lr: " + "1" * 50_000 + "." + "1" * 50_000 + ".", None),
    "depth": ("[" * 5_000 + "]" * 5_000, "nested more than 100 deep"),
    "depth in blocks": ("".join(f"{'  ' * i}a:\n" for i in range(600)), "nested more than 100 deep"),
    "size": ("a: " + "b" * 2**21, "characters"),
    "depth of aliases": ("a: &a {b: {c: 1}}\nd: *a", None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_read_or_refused_at_once(name):
    text, problem = HOSTILE[name]
    started = time.process_time()
    if problem is None:
        parse_text(text, source="job.yaml")
    else:
        with pytest.raises(YamlProblem, match=problem) as refused:
            parse_text(text, source="job.yaml")
        assert str(refused.value).startswith("job.yaml")
        assert len(str(refused.value)) < 1000
    assert time.process_time() - started < 5  # of this process alone; seconds of a slow machine
