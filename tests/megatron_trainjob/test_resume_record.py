"""What is taken for the record of a run: the sections that a resume compares, of their types."""

import pytest

from megatron_trainjob.args import resume

RECORD = {
    "task": "sft",
    "arguments": {"lr": 1e-4},
    "resolved": {"train_iters": 4},
    "model_config": {"hidden_size": 64},
    "weights": {"base": "/models/tiny (1a2b)", "adapter": None},
}


def test_whole_records_and_those_of_earlier_releases_are_taken():
    assert resume.is_record(RECORD)
    assert resume.is_record({"task": "sft", "arguments": {}})


@pytest.mark.parametrize("section", RECORD)
@pytest.mark.parametrize("value", [None, 1, True, [1], [[]], {"base": 5}])
def test_what_is_taken_can_be_compared(section, value):
    """A damaged section ended the run with AttributeError, which is retried."""
    content = {**RECORD, section: value}
    if resume.is_record(content):
        assert isinstance(resume.changes(content, RECORD), tuple)
    else:
        assert not isinstance(value, dict) or section in ("task", "weights")


@pytest.mark.parametrize("content", [None, [], "x", {}, {"task": "sft"}, {"arguments": {}}])
def test_other_content_is_no_record(content):
    assert not resume.is_record(content)
