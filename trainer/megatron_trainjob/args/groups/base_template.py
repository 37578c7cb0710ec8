"""How a conversation becomes tokens and which of them are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

from megatron_trainjob.args.field import EVERY_TASK, arg

BUILT_IN_TEMPLATES = ("alpaca", "chatml", "llama3", "vicuna", "zephyr")
TEMPLATE_FILES = (".jinja", ".yaml", ".yml", ".json")
"""Suffixes of template files."""
TEMPLATE_CHOICES = f"set template to one of {', '.join(BUILT_IN_TEMPLATES)}, or to a .jinja, .yaml or .json file"


WEIGHINGS = ("react", "hermes", "qwen", "agentflan", "alpha_umi")
THOUGHT = "ignore_empty_think"


def _spellings() -> dict[str, str]:
    """Other ways to write a loss_scale: its parts in another order, or with "default", which adds nothing."""
    parts: dict[tuple[str, ...], str] = {(name,): name for name in (*WEIGHINGS, THOUGHT)}
    parts |= {(name, THOUGHT): f"{name}+{THOUGHT}" for name in WEIGHINGS}
    of_last: dict[tuple[str, ...], str] = {("last_round", *each): f"last_round+{name}" for each, name in parts.items()}
    of_last["last_round", THOUGHT] = "last_round_with_ignore_empty_think"
    known = parts | of_last
    written = {"+".join(order): name for each, name in known.items() for order in permutations(each)}
    with_default = {"+".join(order): name for each, name in parts.items() for order in permutations(("default", *each))}
    return {text: name for text, name in (written | with_default).items() if text != name}


LOSS_SCALE_SPELLINGS = _spellings()


@dataclass(frozen=True, kw_only=True)
class BaseTemplate:
    """How a conversation becomes tokens and which of them are trained."""

    template: str | None = arg(
        None,
        "Chat template; unset: the model's.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    system: str | None = arg(
        None,
        "System prompt, or a .txt file with it; a system message in the data wins.",
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    max_length: int | None = arg(
        None,
        "Maximum length of a sample; unset: seq_length, else the model's.",
        unit="tokens",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    truncation_strategy: Literal["delete", "left", "right"] = arg(
        "delete",
        "What happens to a longer sample: dropped, or truncated on one side.",
        applies_to=EVERY_TASK,
        status="works",
    )
    max_pixels: int | None = arg(
        None,
        "Most pixels of an image, to which larger ones are shrunk; unset: those of the model's image processor.",
        unit="pixels",
        ge=1,
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
    )
    min_pixels: int | None = arg(
        None,
        "Fewest pixels of an image, to which smaller ones are enlarged; unset: those of the model's image processor.",
        unit="pixels",
        ge=1,
        applies_to=EVERY_TASK,
        status="works",
    )
    image_root: str | None = arg(
        None,
        "Folder in which relative paths of images start; unset: that of the data file, else the working directory.",
        applies_to=EVERY_TASK,
        status="works",
    )
    image_cache_gib: float = arg(
        0.0,
        "Most space for resized images that are kept beside the tokenized data; 0: they are decoded in every epoch.",
        unit="GiB",
        ge=0,
        status="works",
    )
    agent_template: (
        Literal[
            "react_en",
            "react_zh",
            "qwen_en",
            "qwen_zh",
            "qwen_en_parallel",
            "qwen_zh_parallel",
            "hermes",
            "hunyuan_hermes",
            "toolbench",
            "glm4",
            "glm4_0414",
            "glm4_5",
            "llama3",
            "llama4",
            "react_grpo",
            "mistral",
        ]
        | None
    ) = arg(
        None,
        (
            "How tools and calls are rendered; unset: by the chat template. hermes: as text where it cannot. "
            "react_*, toolbench, qwen_*: as text in the answer. The others must be the model's own format."
        ),
        featured=True,
        applies_to=EVERY_TASK,
        status="works",
        refused_choices={
            "hunyuan_hermes": "the format of Hunyuan's chat templates, no family of which is supported; use hermes",
            "react_grpo": "a format for GRPO, which is not a task here; use react_en",
        },
    )
    norm_bbox: Literal["norm1000", "none"] | None = arg(
        None,
        (
            "Unit of the coordinates of objects: norm1000 thousandths of the image, none pixels of the resized image; "
            "unset: what the model knows (none for Qwen2.5-VL)."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
    use_chat_template: bool = arg(
        True,
        "Use the chat template; pre-training uses plain text.",
        applies_to=EVERY_TASK,
        task_defaults={"pt": False},
        status="works",
    )
    padding_side: Literal["left", "right"] = arg(
        "right",
        "Side on which samples are padded.",
        status="works",
    )
    loss_scale: Literal[
        "default",
        "last_round",
        "all",
        "ignore_empty_think",
        "last_round_with_ignore_empty_think",
        "react",
        "hermes",
        "qwen",
        "agentflan",
        "alpha_umi",
        "last_round+react",
        "last_round+hermes",
        "last_round+qwen",
        "last_round+agentflan",
        "last_round+alpha_umi",
        "react+ignore_empty_think",
        "hermes+ignore_empty_think",
        "qwen+ignore_empty_think",
        "agentflan+ignore_empty_think",
        "alpha_umi+ignore_empty_think",
        "last_round+react+ignore_empty_think",
        "last_round+hermes+ignore_empty_think",
        "last_round+qwen+ignore_empty_think",
        "last_round+agentflan+ignore_empty_think",
        "last_round+alpha_umi+ignore_empty_think",
    ] = arg(
        "default",
        (
            'Which tokens are trained, and how strongly: "default" all answers, "last_round" the last '
            'answer, "all" everything; the others weight parts of answers. Names joined by + apply together, in any '
            "order."
        ),
        spellings=LOSS_SCALE_SPELLINGS,
        applies_to=EVERY_TASK,
        task_defaults={"pt": "all", "rlhf": "last_round"},
        status="works",
    )
    sequence_parallel_size: int = arg(
        1,
        "Sequence split of the non-Megatron trainers.",
        ge=1,
        status="refused",
        reason="it is another name of context_parallel_size and accepted only with the same value; set that",
    )
    stop_words: tuple[str, ...] = arg(
        (),
        (
            "Texts that end an answer, trained after each one; needed only where neither the chat template nor "
            "generation_config.json has one. Where the template prints none of them the first is added."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
    enable_thinking: bool | None = arg(
        None,
        "Variable enable_thinking of the chat template; unset: as the template has it.",
        applies_to=EVERY_TASK,
        status="works",
    )
    chat_template_kwargs: Mapping[str, Any] | None = arg(
        None,
        'Further variables of the chat template, for example {"reasoning_effort": "high"}.',
        applies_to=EVERY_TASK,
        status="works",
    )
    preserve_thinking: bool | None = arg(
        None,
        (
            "Whether thoughts are kept where the chat template removes them. Unset: in trained answers; true: in all; "
            "false: nowhere, and rows whose trained answers lose theirs are dropped."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
    add_non_thinking_prefix: bool | None = arg(
        None,
        (
            "Whether trained answers without a thought start with the empty one of the chat template; unset: as the "
            "template prints them."
        ),
        applies_to=EVERY_TASK,
        status="works",
    )
    keep_incomplete_rows: bool = arg(
        False,
        "Train on rows of which the chat template omits a part, and count them; by default they are dropped.",
        applies_to=EVERY_TASK,
        status="works",
    )
    split_turns: bool = arg(
        False,
        (
            "Train every answer of a conversation as the last one of a separate row, as the model generates it; "
            "loss_scale and masks choose which. Rows are counted after the split."
        ),
        applies_to=("sft", "export"),
        essential=True,
        status="works",
    )
    response_prefix: str | None = arg(
        None,
        "Prefix of each generated answer.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="it is for inference, and training generates nothing",
    )
    template_backend: Literal["swift", "jinja"] = arg(
        "swift",
        "Engine of the chat template.",
        status="no effect",
        fulfilled=("jinja",),
        reason="there is one engine, which renders the chat template of the model",
    )
