"""Commands that users of ms-swift start from: each becomes a valid manifest, or is refused for a known missing part."""

import pytest

from command_table import COMMANDS, outcome

IDS = [f"{command['version']}-{command['name']}-{index}" for index, command in enumerate(COMMANDS)]
# What a refused command asks for that is not here, by the arguments or values that ask for it.
MISSING = {
    "generation while training": ("grpo", "gkd", "GRPO", "GKD"),
    "preference training and scores": ("spec.task: preference", "rlhf_type", "task_type", "num_labels", "rpo_alpha"),
    "models with images": ("models with images", "lora_llm"),
    "parts of models": ("mtp_num_layers", "new_special_tokens"),
    "data": ("group_by_length", "cached_val_dataset", "add_non_thinking_prefix"),
    "optimizers": ("dist_muon",),
    "reports": ("report_to",),
    "adapters in Megatron form": ("merge_lora: false",),
}


def is_explained(problem: str) -> bool:
    return any(part in problem for parts in MISSING.values() for part in parts)


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_a_command_is_accepted_or_asks_for_a_known_missing_part(command):
    found = outcome(command)
    assert not found.problems or any(map(is_explained, found.problems)), found.problems


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_the_version_is_told_by_names_and_layout(command):
    assert outcome(command, tells_version=False).problems == outcome(command).problems
