"""Encodes conversations as token ids with loss weights. Works on batches; uses neither files nor torch."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import batched
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from megatron_trainer.data.conversation.chat_template import TemplateSettings
from megatron_trainer.data.conversation.formats import Recognition, recognize, with_system
from megatron_trainer.data.conversation.hermes import uses_tools, without_tools
from megatron_trainer.data.conversation.rendering import Rendering
from megatron_trainer.data.conversation.template import choose_template
from megatron_trainer.data.conversation.tool_answers import MARKERS, with_tools_in_answers
from megatron_trainer.data.encoding.loss_scale import STRATEGIES
from megatron_trainer.data.encoding.loss_span import Span, spans, trained_messages
from megatron_trainer.data.encoding.tokens import Tokens, tokenization
from megatron_trainer.data.encoding.turn_rows import with_one_answer
from megatron_trainer.data.row import Record, parse_row
from megatron_trainer.data.values import IGNORED, Conversation, Medium, Message, Pair, Rejection, RowError, Sample
from megatron_trainer.data.vision.model import ImageRows
from megatron_trainer.data.vision.places import with_note_about_tags
from megatron_trainer.data.vision.rows import lifted
from megatron_trainer.data.vision.settings import VisionSettings

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 32  # rows whose tokens are kept with their offsets, some hundred bytes per token
TOO_LONG = "longer than max_length"
LEFT_OUT = "the chat template leaves out"
_STAND_IN = "An answer"
"""Appended to a conversation to be scored, so that the template opens the answer; it is cut off again."""


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Everything besides the tokenizer that determines the tokens of a row.

    max_length: maximum tokens of a sequence. system: prompt for rows without one. keeps_incomplete: rows that the
    template prints only partly are trained and counted instead of dropped. agent_template: format of tools and calls as
    text; hermes only where the template does not support them, the others in every row with tools. vision: of a model
    that sees, None for text models.
    """

    recognition: Recognition = field(default_factory=Recognition)
    template: str | None = None
    use_chat_template: bool = True
    system: str | None = None
    max_length: int | None = None
    truncation_strategy: Literal["delete", "left", "right"] = "delete"
    loss_scale: str = "default"
    chat: TemplateSettings = field(default_factory=TemplateSettings)
    keeps_incomplete: bool = False
    agent_template: str | None = None
    vision: VisionSettings | None = None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One row's sequences (one, or chosen and rejected): ids and, for each token, the weight of its loss.

    is_grouped: the one sequence is a group of several (values.Sample).

    is_weighted: whether weights other than 0 and 1 may occur in the row's dataset. target:
    as of Conversation; in a row scored by a head only the last token has weight 1. notes: about the row for the user,
    worded the same for all rows of a kind. media: images and videos of each sequence, empty where there are none.
    """

    number: int
    input_ids: tuple[NDArray[np.int32], ...]
    weights: tuple[NDArray[np.float32], ...]
    channel: str | None
    is_truncated: bool
    is_weighted: bool = False
    notes: tuple[str, ...] = ()
    target: tuple[float, ...] = ()
    is_grouped: bool = False
    media: tuple[tuple[Medium, ...], ...] = ()

    @property
    def media_of_sequences(self) -> tuple[tuple[Medium, ...], ...]:
        """Images and videos of each sequence."""
        return self.media or ((),) * len(self.input_ids)


def to_item(encoded: Encoded) -> Sample | Pair:
    """The sample, or the pair of chosen and rejected."""
    samples = [
        Sample(
            input_ids=ids,
            labels=np.where(weights > 0, ids, np.int32(IGNORED)),
            loss_scale=weights if encoded.is_weighted else None,
            channel=encoded.channel,
            media=media,
        )
        for ids, weights, media in zip(encoded.input_ids, encoded.weights, encoded.media_of_sequences, strict=True)
    ]
    if len(samples) == 1:
        return replace(samples[0], target=encoded.target)
    return Pair(chosen=samples[0], rejected=samples[1], target=encoded.target)


def log_notes(rows: Iterable[Encoded], logged: set[str]) -> None:
    """Log notes about rows that are encoded during training, each note once."""
    for row in rows:
        for note in row.notes:
            if note not in logged:
                logged.add(note)
                logger.warning("row %d and perhaps others: %s", row.number + 1, note)


@dataclass(frozen=True, kw_only=True)
class _Marked:
    """A sequence: its ids, the weight of each, whether it was cut, and its images."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    is_cut: bool
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Text:
    """One sequence of a row: its text, the trained parts, notes for the user, and its images."""

    text: str
    spans: list[Span]
    notes: tuple[str, ...]
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Rendered:
    record: Record
    conversation: Conversation
    texts: tuple[_Text, ...]
    notes: tuple[str, ...]


class Encoder:
    """Encodes records with one tokenizer and one template. Picklable.

    images: reads those of rows for this model; settings.vision then is its settings.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings, images: ImageRows | None = None
    ) -> None:
        self.settings = settings
        self._images = images
        self.template = choose_template(
            tokenizer,
            template=settings.template,
            use_chat_template=settings.use_chat_template,
            settings=settings.chat,
        )
        self._tokenize = tokenization(tokenizer)
        self._added = _added_ids(tokenizer) if self._scores_plain_text else ((), ())

    @property
    def sequences_per_row(self) -> int:
        """1, or 2 where each row becomes a chosen and a rejected sequence."""
        return 2 if self.settings.recognition.needs_rejected else 1

    @property
    def _scores_plain_text(self) -> bool:
        return self.settings.recognition.is_scored and not self.settings.use_chat_template

    @property
    def is_weighted(self) -> bool:
        """Whether tokens may have weights other than 0 and 1."""
        return not STRATEGIES[self.settings.loss_scale].is_binary

    def encode(self, records: Iterable[Record]) -> list[Encoded | Rejection]:
        """One result for each record, in order."""
        return [result for part in batched(records, ROWS_AT_ONCE) for result in self._encode(part)]

    def _encode(self, records: Sequence[Record]) -> list[Encoded | Rejection]:
        rendered = [self._render(record) for record in records]
        texts = [part.text for row in rendered if isinstance(row, _Rendered) for part in row.texts]
        tokens = iter(self._tokenize.batch(texts))
        return [
            self._finish(row, [next(tokens) for _ in row.texts]) if isinstance(row, _Rendered) else row
            for row in rendered
        ]

    def _render(self, record: Record) -> _Rendered | Rejection:
        try:
            conversation = self._conversation(record)
            if record.answer is not None:
                conversation = with_one_answer(conversation, record.answer, self.settings.loss_scale)
            conversation = with_system(conversation, self.settings.system)
            agent_template = self.settings.agent_template
            if agent_template is not None and agent_template in MARKERS and uses_tools(conversation):
                conversation = with_tools_in_answers(conversation, agent_template)
            parts = self._render_all(conversation)
        except RowError as err:
            return Rejection(location=record.location, reason=err.reason, detail=err.detail[:300])
        notes = dict.fromkeys([*conversation.notes, *(note for part in parts for note in part.notes)])
        return _Rendered(
            record=record,
            conversation=conversation,
            texts=tuple(parts),
            notes=tuple(notes),
        )

    def _conversation(self, record: Record) -> Conversation:
        """The conversation of a row, with marks at the places of its images."""
        row, recognition = parse_row(record.payload), self.settings.recognition
        if self._images is None or recognition.is_scored or recognition.needs_label:
            return recognize(row, recognition, number=record.number)
        row, media = lifted(row, recognition.columns, has_rejected=recognition.needs_rejected)
        conversation = recognize(row, recognition, number=record.number)
        if media is None:
            return with_note_about_tags(conversation)
        return self._images.placed(conversation, media, record.file)

    def _render_all(self, conversation: Conversation) -> list[_Text]:
        """The record's sequences; tools become text if the template does not support them and agent_template is set."""
        if self.settings.recognition.is_scored:
            sequences = (conversation.messages, *conversation.others)
            return [self._render_scored(replace(conversation, messages=messages)) for messages in sequences]
        falls_back = self.settings.agent_template == "hermes" and uses_tools(conversation)
        try:
            return self._render_both(conversation, is_whole=falls_back)
        except RowError:
            if not falls_back:
                raise
        return self._render_both(without_tools(conversation), is_whole=False)

    def _render_scored(self, conversation: Conversation) -> _Text:
        """The input of a head: the conversation up to where the model would answer, or all of it.

        Without a chat template its texts, to which the tokenizer adds its own tokens.
        """
        messages = conversation.messages
        if self._scores_plain_text:
            return _Text(text="\n".join(m.content for m in messages if m.content), spans=[], notes=())
        is_answered = messages[-1].role == "assistant"
        asked = messages if is_answered else (*messages, Message(role="assistant", content=_STAND_IN))
        rendering = self.template.render(asked, conversation.tools, frozenset())
        _refuse_half_characters(rendering.text)
        kinds = dict.fromkeys(f"{LEFT_OUT} {loss.kind}" for loss in rendering.lost)
        if rendering.lost and not self.settings.keeps_incomplete:
            raise RowError(next(iter(kinds)), rendering.lost[0].detail)
        end = len(rendering.text) if is_answered else rendering.turns[-1].start
        return _Text(text=rendering.text[:end], spans=[], notes=(*rendering.notes, *kinds))

    def _render_both(self, conversation: Conversation, *, is_whole: bool) -> list[_Text]:
        sequences = [conversation.messages, *([conversation.rejected] if conversation.rejected is not None else [])]
        return [self._render_one(conversation, messages, is_whole=is_whole) for messages in sequences]

    def _render_one(self, conversation: Conversation, messages: Sequence[Message], *, is_whole: bool) -> _Text:
        """One sequence. is_whole: refuse it if a part is missing, even where incomplete rows are kept."""
        loss_scale = self.settings.loss_scale
        trained = trained_messages(messages, loss_scale)
        rendering = self.template.render(messages, conversation.tools, trained)
        if not rendering.text.isascii():
            _refuse_half_characters(rendering.text)
        _refuse_endless(rendering, trained)
        kinds = dict.fromkeys(f"{LEFT_OUT} {loss.kind}" for loss in rendering.lost)
        if rendering.lost and (is_whole or not self.settings.keeps_incomplete):
            raise RowError(next(iter(kinds)), rendering.lost[0].detail)
        marked = spans(rendering, messages, loss_scale)
        notes = (*rendering.notes, *kinds, *_unnamed(rendering.text, messages))
        if self._images is None or not conversation.media:
            return _Text(text=rendering.text, spans=marked, notes=notes)
        shifted, media = self._images.shown(rendering.text, messages, conversation.media)
        moved = [
            replace(span, start=start, end=end)
            for span in marked
            for start, end in shifted.places(span.start, span.end)
        ]
        return _Text(text=shifted.text, spans=moved, notes=notes, media=tuple(media))

    def _finish(self, row: _Rendered, tokens: list[Tokens]) -> Encoded | Rejection:
        try:
            weigh = self._mark_last if self.settings.recognition.is_scored else self._weigh
            parts = [weigh(part, text) for part, text in zip(tokens, row.texts, strict=True)]
            if self.settings.recognition.grouping is not None:
                parts = [_joined(parts)]
            _refuse_equal(parts)
        except RowError as err:
            return Rejection(location=row.record.location, reason=err.reason, detail=err.detail)
        return Encoded(
            number=row.record.number,
            input_ids=tuple(part.ids for part in parts),
            weights=tuple(part.weights for part in parts),
            channel=row.conversation.channel,
            is_truncated=any(part.is_cut for part in parts),
            is_weighted=self.is_weighted or not all(_is_binary(part.weights) for part in parts),
            notes=row.notes,
            target=row.conversation.target,
            is_grouped=self.settings.recognition.grouping is not None,
            media=tuple(part.media for part in parts) if any(part.media for part in parts) else (),
        )

    def _mark_last(self, tokens: Tokens, _text: _Text) -> _Marked:
        """The tokens of a sequence scored by a head, of which the last has weight 1."""
        before, after = self._added
        ids = np.asarray([*before, *tokens.ids, *after], dtype=np.int32)
        limit = self.settings.max_length
        is_cut = limit is not None and len(ids) > limit
        if is_cut:
            kept = self._kept(len(tokens.ids), (limit or 0) - len(before) - len(after))
            ids = np.asarray([*before, *tokens.ids[kept], *after], dtype=np.int32)
        if not len(ids):
            raise RowError("empty text")
        weights = np.zeros(len(ids), dtype=np.float32)
        weights[-1] = 1
        return _Marked(ids=ids, weights=weights, is_cut=is_cut)

    def _weigh(self, tokens: Tokens, text: _Text) -> _Marked:
        ids = np.asarray(tokens.ids, dtype=np.int32)
        weights = np.zeros(len(ids), dtype=np.float32)
        for span in reversed(text.spans):  # a token that overlaps two spans belongs to the first
            first, last = tokens.range(span.start, span.end)
            weights[first:last] = span.weight
        media = text.media
        if self._images is not None:
            ids, weights = self._images.tokens.expanded(ids, weights, media)
        limit = self.settings.max_length
        is_cut = limit is not None and len(ids) > limit
        if is_cut:
            kept = self._kept(len(ids), limit or 0)
            if media and self._images is not None:
                kept, media = self._images.tokens.whole(ids, media, kept)
            ids, weights = ids[kept], weights[kept].copy()
        weights[:1] = 0  # nothing comes before the first token, so nothing predicts it
        if not weights.any():
            raise RowError("no trained token is left after truncation" if is_cut else "no token to train on")
        return _Marked(ids=ids, weights=weights, is_cut=is_cut, media=media)

    def _kept(self, length: int, limit: int) -> slice:
        """The tokens that are left of a sequence that is too long."""
        if self.settings.truncation_strategy == "delete":
            raise RowError(TOO_LONG, f"{length} > {self.settings.max_length} tokens")
        return slice(length - limit, length) if self.settings.truncation_strategy == "left" else slice(limit)


def _joined(parts: Sequence[_Marked]) -> _Marked:
    """A group as one sequence: a token with weight ends one of its sequences."""
    return _Marked(
        ids=np.concatenate([part.ids for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        is_cut=any(part.is_cut for part in parts),
    )


def _added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the tokenizer itself adds before and after a text."""
    plain, whole = (tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (False, True))
    start = next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
    return tuple(whole[:start]), tuple(whole[start + len(plain) :])


def _is_binary(weights: NDArray[np.float32]) -> bool:
    return bool(((weights == 0) | (weights == 1)).all())


def _unnamed(text: str, messages: Sequence[Message]) -> list[str]:
    """A note about names of speakers that few templates print; those of tools are found by their calls."""
    names = {str(message.extra["name"]) for message in messages if message.role != "tool" and "name" in message.extra}
    return [] if all(name in text for name in names) else [f"{LEFT_OUT} the names of speakers (name)"]


def _refuse_endless(rendering: Rendering, trained: Container[int]) -> None:
    """Refuses a turn without a stop token: a model trained on it never stops."""
    for turn in rendering.turns:
        if turn.message in trained and turn.end <= turn.closing:
            shown = rendering.text[max(0, turn.closing - 60) : turn.closing + 30]
            raise RowError("an answer ends with no stop token", f"name one with stop_words: ...{shown!r}")


def _refuse_equal(sequences: Sequence[_Marked]) -> None:
    """Refuses a pair whose answers differ only in what was cut off, or not in their tokens and images at all."""
    if len(sequences) != 2:
        return
    chosen, rejected = sequences
    if np.array_equal(chosen.ids, rejected.ids) and chosen.media == rejected.media:
        raise RowError("chosen and rejected are the same tokens")


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise RowError("the text holds half a character", "a lone surrogate such as \\ud83d") from err
