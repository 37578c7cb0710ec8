"""YAML as kubectl reads it, without its traps."""

import pytest

from megatron_trainjob.args.yaml_file import YamlProblem, load, load_all, parse_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.0e-5", 1e-5),
        ("1e+06", 1e6),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("0", 0),
        ("-1", -1),
        ("0x10", 16),
        ("16", 16),
        ("'16'", "16"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("2026-11-24", "2026-11-24"),
        ("12:30:00", "12:30:00"),
        ("true", True),
        ("none", "none"),
        ("null", None),
        ("~", None),
    ],
)
def test_scalar_is_read_as_kubectl_reads_it(text, value):
    found = parse_text(f"key: {text}")[0]["key"]
    assert (found, type(found)) == (value, type(value))


def test_infinity_is_a_number():
    assert parse_text("key: .inf")[0]["key"] == float("inf")


def test_key_written_twice_is_an_error_that_names_both_lines():
    with pytest.raises(YamlProblem) as problem:
        parse_text("args:\n  lr: 1e-5\n  model: m\n  lr: 1e-4\n", source="job.yaml")
    assert str(problem.value) == "job.yaml line 4: key 'lr' is written twice, here and in line 2; keep one"


def test_same_key_in_different_mappings_is_fine():
    assert parse_text("a: {x: 1}\nb: {x: 2}") == [{"a": {"x": 1}, "b": {"x": 2}}]


def test_key_of_a_merged_mapping_may_be_overridden():
    assert parse_text("base: &b {x: 1, y: 2}\nown: {<<: *b, x: 3}")[0]["own"] == {"x": 3, "y": 2}


def test_broken_text_names_source_and_line():
    with pytest.raises(YamlProblem, match=r"^job.yaml line 2: .*expected"):
        parse_text("a: [1,\nb: }", source="job.yaml")


def test_key_that_is_no_scalar_is_refused():
    with pytest.raises(YamlProblem, match="a key must be text"):
        parse_text("? [a, b]\n: c")


def test_python_objects_are_not_made():
    with pytest.raises(YamlProblem, match="could not determine a constructor"):
        parse_text("a: !!python/object/apply:os.getcwd []")


def test_file_of_several_documents_is_read_as_a_list(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("a: 1\n---\n---\nb: 2\n")
    assert load_all(path) == [{"a": 1}, {"b": 2}]
    with pytest.raises(YamlProblem, match="holds 2 documents, expected one"):
        load(path)


def test_empty_file_is_nothing(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# only a comment\n")
    assert load(path) is None


def test_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(YamlProblem, match=r"binary.yaml: is not UTF-8 text"):
        load(path)
