"""Commands that users of ms-swift start from: each becomes a valid manifest, or is refused for a known missing part."""

import pytest

from tests.support.arguments import command_runs
from tests.support.arguments.command_table import COMMANDS, outcome

IDS = [f"{command['version']}-{command['name']}-{index}" for index, command in enumerate(COMMANDS)]
# What a refused command asks for that is not here, by the arguments or values that ask for it.
MISSING = {
    "generation while training": ("grpo", "gkd", "GRPO", "GKD"),
    "preference training and scores": ("spec.task: preference", "rlhf_type", "task_type", "num_labels", "rpo_alpha"),
    "models with images": ("models with images",),
    "data": ("add_non_thinking_prefix",),
}


def is_explained(problem: str) -> bool:
    return any(part in problem for parts in MISSING.values() for part in parts)


@pytest.fixture(scope="module")
def outcomes():
    return [outcome(command) for command in COMMANDS]


@pytest.mark.parametrize("index", range(len(COMMANDS)), ids=IDS)
def test_a_command_is_accepted_or_asks_for_a_known_missing_part(outcomes, index):
    problems = outcomes[index].problems
    assert not problems or any(map(is_explained, problems)), problems


@pytest.mark.parametrize("index", range(0, len(COMMANDS), 4), ids=IDS[::4])
def test_the_version_is_recognized_by_names_and_layout(outcomes, index):
    assert outcome(COMMANDS[index], tells_version=False).problems == outcomes[index].problems


def test_the_readme_counts_what_the_page_lists():
    """And the page is honest: the test below."""
    text = command_runs.README.read_text()
    assert "<!-- counted commands -->" in text
    assert text == command_runs.readme(text, command_runs.PAGE.read_text())


def test_the_page_promises_no_more_than_is_accepted(outcomes):
    """docs/commands.md: every command, none better than it is; a row names the run that test_commands_run.py makes."""
    rows = command_runs.page_rows(command_runs.PAGE.read_text())
    found = {(each.outcome.version, each.outcome.name): each for each in command_runs.command_runs()}
    assert len(rows) == len(COMMANDS)
    assert {(version, name) for version, name, *_ in rows} == found.keys()
    for version, name, verdict, run in rows:
        each = found[(version, name)]
        assert (each.outcome.verdict == "refused") <= (verdict == "refused"), name
        assert run.startswith(("no: ", "an export")) or each.run is not None, name
