"""Real chat templates times kinds of rows: what is trained of each, or why the row is dropped.

    python -m tests.support.data.template_matrix           prints the table
    python -m tests.support.data.template_matrix --write   puts it into docs/data.md

The templates are read from the installed packages that tests/support/data/chat_templates.txt names.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from megatron_trainer.data.encoding.encode import Encoded, Encoder, EncodeSettings
from megatron_trainer.data.row import Record
from megatron_trainer.data.values import Rejection
from tests.support.models.text_models import trained_tokenizer

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
START, END = "<!-- made by python -m tests.support.data.template_matrix --write -->", "<!-- end of the table -->"
TRL, AXOLOTL = "trl/chat_templates", "axolotl/utils/chat_templates/templates"
_TOKEN = re.compile(
    r"<\|[^|<>{}'\"]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|<\|[a-z_]+>|<[a-z_]+\|>|\[\|[a-z]+\|\]"
    r"|\[/?(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT)\]|</?think>|</?tool_call>|\[gMASK\]|<sop>"
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A chat template in an installed package, and the end-of-sequence token of its model."""

    package: str
    path: str
    eos: str

    @property
    def name(self) -> str:
        """Package and file."""
        return f"{self.package}: {Path(self.path).stem}"

    def source(self) -> str:
        """The template."""
        return Path(str(distribution(self.package).locate_file(self.path))).read_text(encoding="utf-8")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A small byte-level tokenizer with every special token that the template names."""
        return _tokenizer(self)


@cache
def _tokenizer(model: Model) -> PreTrainedTokenizerBase:
    special = ["<unk>", "<s>", *sorted({*_TOKEN.findall(model.source()), model.eos} - {"<s>"})]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(tuple(special)), bos_token="<s>", eos_token=model.eos, pad_token=model.eos
    )
    tokenizer.chat_template = model.source()
    return tokenizer


def _models(package: str, folder: str, eos: dict[str, str]) -> tuple[Model, ...]:
    return tuple(Model(package=package, path=f"{folder}/{name}.jinja", eos=token) for name, token in eos.items())


MODELS = _models(
    "trl",
    TRL,
    {
        "qwen2_5": "<|im_end|>",
        "qwen3": "<|im_end|>",
        "qwen3_6": "<|im_end|>",
        "llama3": "<|eot_id|>",
        "llama3_1": "<|eot_id|>",
        "llama3_2": "<|eot_id|>",
        "deepseekv3": "<｜end▁of▁sentence｜>",
        "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
        "glm4moe": "<|endoftext|>",
        "gptoss": "<|return|>",
        "gemma3": "<eos>",
        "phi3": "<|endoftext|>",
        "cohere2": "<|END_OF_TURN_TOKEN|>",
        "nemotron_3_nano": "<|im_end|>",
    },
) + _models(
    "axolotl",
    AXOLOTL,
    {
        "deepseek_v2": "<｜end▁of▁sentence｜>",
        "mistral_v2v3": "</s>",
        "mistral_v3_tekken": "</s>",
        "mistral_v7_tekken": "</s>",
        "exaone4": "[|endofturn|]",
        "llama4": "<|eot|>",
        "jamba": "<|eom|>",
        "phi_4": "<|im_end|>",
    },
)


def _user(content: str) -> dict[str, object]:
    return {"role": "user", "content": content}


def _answer(content: str | None, **fields: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **fields}


def _call(number: int, name: str, arguments: object) -> dict[str, object]:
    return {"type": "function", "id": f"abcdefgh{number}", "function": {"name": name, "arguments": arguments}}


def _result(number: int, content: str) -> dict[str, object]:
    return {"role": "tool", "tool_call_id": f"abcdefgh{number}", "content": content}


_PROPERTIES = {"city": {"type": "string", "description": "Name of it"}, "days": {"type": "integer"}}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Forecast of a place",
            "parameters": {"type": "object", "properties": _PROPERTIES, "required": ["city"]},
        },
    }
]
_ASKED = _user("Weather in Paris?")
_WEATHER = _call(0, "get_weather", {"city": "Paris", "days": 3})
_WEATHER_AS_TEXT = _call(0, "get_weather", '{"city": "Paris", "days": 3}')
_TIME = _call(1, "get_time", {"zone": "Europe/Rome"})
_SUNNY, _NOON = _result(0, "sunny, 21 degrees"), _result(1, "noon, a bit later")
_WARM = _answer("Warm and bright.")
_WHERE, _HERE = _user("Where is it?"), "Right here."

ROWS: dict[str, dict[str, object]] = {
    "one round": {"messages": [_WHERE, _answer(_HERE)]},
    "system, two rounds": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *(_WHERE, _answer(_HERE), _user("And now?"), _answer("Over there.")),
        ]
    },
    "two questions": {"messages": [_user("I live near the bank"), _user("Tell me the time."), _answer("Ten o'clock.")]},
    "thought in the answer": {"messages": [_WHERE, _answer(f"<think>\nI look around.\n</think>\n\n{_HERE}")]},
    "thought as a field": {"messages": [_WHERE, _answer(_HERE, reasoning_content="I look around.")]},
    "two thoughts": {
        "messages": [
            *(_WHERE, _answer(_HERE, reasoning_content="I look around.")),
            *(_user("And now?"), _answer("Over there.", reasoning_content="It moved again.")),
        ]
    },
    "tool call": {"tools": _TOOLS, "messages": [_ASKED, _answer(None, tool_calls=[_WEATHER]), _SUNNY, _WARM]},
    "call beside words": {
        "tools": _TOOLS,
        "messages": [_ASKED, _answer("Let me look.", tool_calls=[_WEATHER_AS_TEXT]), _SUNNY, _WARM],
    },
    "call last": {"tools": _TOOLS, "messages": [_ASKED, _answer(None, tool_calls=[_WEATHER])]},
    "two calls": {
        "tools": _TOOLS,
        "messages": [_ASKED, _answer(None, tool_calls=[_WEATHER, _TIME]), _SUNNY, _NOON, _WARM],
    },
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, _WHERE, _answer(_HERE)]},
    "ShareGPT tools": {
        "tools": _TOOLS,
        "conversations": [
            {"from": "human", "value": "Weather in Paris?", "role": None},
            {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'},
            {"from": "observation", "value": "sunny, 21 degrees"},
            {"from": "gpt", "value": "Warm and bright."},
        ],
    },
}


@cache
def encoded(model: Model, kind: str) -> Encoded | Rejection:
    """What becomes of a row of this kind under the template of this model."""
    [result] = _encoder(model).encode([Record(0, kind, 1, ROWS[kind])])
    return result


@cache
def _encoder(model: Model) -> Encoder:
    return Encoder(model.tokenizer(), EncodeSettings())


def stop_words(model: Model) -> tuple[str, ...]:
    """What trained answers end with."""
    return _encoder(model).template.stop_words


def trained_runs(model: Model, result: Encoded) -> list[str]:
    """The trained pieces of a row, as text."""
    runs: list[list[int]] = []
    previous = -2
    for place, (token, weight) in enumerate(zip(result.input_ids[0].tolist(), result.weights[0].tolist(), strict=True)):
        if weight > 0:
            if place != previous + 1:
                runs.append([])
            runs[-1].append(token)
            previous = place
    return [model.tokenizer().decode(run) for run in runs]


def reference_text(model: Model, kind: str) -> str | None:
    """apply_chat_template on the row as it stands; None where it refuses or the row has another dialect."""
    row = ROWS[kind]
    if "messages" not in row:
        return None
    try:
        return str(model.tokenizer().apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False))
    except Exception:  # noqa: BLE001 (a template may raise anything)
        return None


def cell(model: Model, kind: str) -> str:
    """The entry of the table: = the text of apply_chat_template, + another one with everything in it, or a reason."""
    result = encoded(model, kind)
    if isinstance(result, Rejection):
        return result.reason.removeprefix("the chat template ").replace("leaves out", "does not support")
    return "=" if model.tokenizer().decode(result.input_ids[0]) == reference_text(model, kind) else "+"


def table() -> str:
    """The whole table in Markdown; reasons stand below it, by number."""
    reasons: dict[str, int] = {}
    lines = [f"| template | ends with | {' | '.join(ROWS)} |", f"|---|---|{'---|' * len(ROWS)}"]
    for model in MODELS:
        cells = [cell(model, kind) for kind in ROWS]
        marks = [entry if entry in "=+" else str(reasons.setdefault(entry, len(reasons) + 1)) for entry in cells]
        ends = " ".join(f"`{word}`".replace("|", "\\|") for word in stop_words(model))
        lines.append(f"| {model.name} | {ends} | {' | '.join(marks)} |")
    lines += ["", *(f"{number}. dropped: {reason}" for reason, number in reasons.items())]
    return "\n".join(lines)


def written(text: str) -> str:
    """The text of docs/data.md with the table of now."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCS.write_text(written(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(table() + "\n")
