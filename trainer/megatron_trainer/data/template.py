"""Which template renders the conversations: the tokenizer's own, a built-in one, a file, or none at all."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.chat_template import ChatTemplate
from megatron_trainer.data.declared_template import BUILT_IN, DeclaredTemplate, plain_template, read_pieces
from megatron_trainer.data.rendering import Template
from megatron_trainer.data.values import RowError
from megatron_trainer.failure import InvalidInput
from megatron_trainjob.violation import Violation


def choose_template(tokenizer: PreTrainedTokenizerBase, *, template: str | None, use_chat_template: bool) -> Template:
    """The template of a run.

    template: None for the tokenizer's own, the name of a built-in one, or a file: .jinja holds a chat template in the
    tokenizer's language, .yaml, .yml or .json the pieces of a declared one.

    Raises InvalidInput when there is no such template.
    """
    if not use_chat_template:
        return plain_template(bos=_added_bos(tokenizer), eos=_eos(tokenizer))
    if template is None:
        return _own(tokenizer)
    if template in BUILT_IN:
        return DeclaredTemplate(BUILT_IN[template], bos=tokenizer.bos_token or "", eos=_eos(tokenizer))
    return _from_file(tokenizer, template)


def _own(tokenizer: PreTrainedTokenizerBase) -> Template:
    if not tokenizer.chat_template:
        raise _wrong(None, f"this tokenizer has no chat template; {_choices()}, or set use_chat_template: false")
    return _checked(tokenizer, None, None)


def _from_file(tokenizer: PreTrainedTokenizerBase, template: str) -> Template:
    path = Path(template)
    if path.suffix not in (".jinja", ".yaml", ".yml", ".json"):
        raise _wrong(template, f"no such template; leave it out to use the tokenizer's own, or {_choices()}")
    try:
        if path.suffix == ".jinja":
            return _checked(tokenizer, template, path.read_text(encoding="utf-8"))
        return DeclaredTemplate(read_pieces(path), bos=tokenizer.bos_token or "", eos=_eos(tokenizer))
    except (OSError, ValueError) as err:
        raise _wrong(template, f"this template file cannot be used: {err}") from err


def _checked(tokenizer: PreTrainedTokenizerBase, template: str | None, source: str | None) -> Template:
    try:
        return ChatTemplate(tokenizer, source=source)
    except RowError as err:
        raise _wrong(template, f"the chat template cannot render a question and an answer: {err.detail}") from err


def _choices() -> str:
    return f"set template to one of {', '.join(sorted(BUILT_IN))}, or to a .jinja, .yaml or .json file"


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise _wrong(None, "this template ends answers with EOS, but the tokenizer has no eos_token")
    return str(tokenizer.eos_token)


def _added_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token where the tokenizer puts one before plain text by itself, else nothing."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if tokenizer.bos_token and ids[0] == tokenizer.bos_token_id else ""


def _wrong(value: object, message: str) -> InvalidInput:
    return InvalidInput((Violation(path="template", value=value, message=message),))
