"""Chooses the template that renders conversations: the tokenizer's own, a built-in one, a file, or none at all."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.conversation.chat_template import ChatTemplate, TemplateSettings
from megatron_trainer.data.conversation.declared_template import (
    BUILT_IN,
    DeclaredTemplate,
    Pieces,
    plain_template,
    read_pieces,
)
from megatron_trainer.data.conversation.rendering import Template
from megatron_trainer.data.values import RowError
from megatron_trainer.failure import InvalidInput
from megatron_trainjob import input_file
from megatron_trainjob.args.groups.base_template import TEMPLATE_CHOICES
from megatron_trainjob.violation import Violation

logger = logging.getLogger(__name__)


def choose_template(
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None,
    use_chat_template: bool,
    settings: TemplateSettings | None = None,
) -> Template:
    """The template of a run.

    template: None for the tokenizer's own, the name of a built-in one, or a file: .jinja holds a chat template in the
    tokenizer's language, .yaml, .yml or .json the pieces of a declared one. settings: for chat templates.

    Raises InvalidInput when there is no such template.
    """
    if not use_chat_template:
        return plain_template(bos=_added_bos(tokenizer), eos=_eos(tokenizer))
    if template is None:
        return _own(tokenizer, settings)
    if template in BUILT_IN:
        return _declared(tokenizer, BUILT_IN[template], settings)
    return _from_file(tokenizer, template, settings)


def _own(tokenizer: PreTrainedTokenizerBase, settings: TemplateSettings | None) -> Template:
    if not tokenizer.chat_template:
        raise _wrong(None, f"this tokenizer has no chat template; {TEMPLATE_CHOICES}, or set use_chat_template: false")
    return _checked(tokenizer, None, None, settings)


def _from_file(tokenizer: PreTrainedTokenizerBase, template: str, settings: TemplateSettings | None) -> Template:
    path = Path(template)
    try:
        if path.suffix == ".jinja":
            return _checked(tokenizer, template, input_file.read_text(path), settings)
        return _declared(tokenizer, read_pieces(path), settings)
    except (OSError, ValueError) as err:
        raise _wrong(template, f"this template file cannot be used: {err}") from err


def _declared(
    tokenizer: PreTrainedTokenizerBase, pieces: Pieces, settings: TemplateSettings | None
) -> DeclaredTemplate:
    given = settings or TemplateSettings()
    return DeclaredTemplate(
        pieces,
        bos=tokenizer.bos_token or "",
        eos=_eos(tokenizer),
        end=next(iter(given.stop_words), ""),
        writes_thoughts=bool(given.preserve_thinking),
    )


def _checked(
    tokenizer: PreTrainedTokenizerBase, template: str | None, source: str | None, settings: TemplateSettings | None
) -> Template:
    try:
        chat_template = ChatTemplate(tokenizer, source=source, settings=settings)
    except RowError as err:
        raise _wrong(template, f"the chat template cannot render a question and an answer: {err.detail}") from err
    for name in sorted(set((settings or TemplateSettings()).variables) - chat_template.variables):
        logger.warning("the chat template has no variable %s; it has no effect", name)
    if not chat_template.stop_words:
        shown = chat_template.example[-120:]
        raise _wrong(template, f"an answer ends with no token that stops generation; set stop_words: ...{shown!r}")
    return chat_template


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise _wrong(None, "this template ends answers with EOS, but the tokenizer has no eos_token")
    return str(tokenizer.eos_token)


def _added_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token if the tokenizer prepends one to plain text, else empty."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if tokenizer.bos_token and ids[0] == tokenizer.bos_token_id else ""


def _wrong(value: object, message: str) -> InvalidInput:
    return InvalidInput((Violation(path="template", value=value, message=message),))
