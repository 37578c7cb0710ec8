"""Puts the images of a row at their places in its messages: <image> and <video>, and marks of parts (rows.py)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from megatron_trainer.data.values import Conversation, Message, RowError
from megatron_trainer.data.vision.boxes import Boxes
from megatron_trainer.data.vision.rows import IMAGE_TAG, MARK, NONCHARACTERS, VIDEO_TAG, Media, mark

MISMATCH = "images and their places do not match"
PREPENDED = "a row names no place for its images; they come before the first question"
PLAIN_TAGS = "a row without images or videos has <image> or <video> in a text, where it stays as it is"
_SPACED = re.compile(rf"\s*({MARK.pattern})\s*")
_TAGS = re.compile(f"{MARK.pattern}|{IMAGE_TAG}|{VIDEO_TAG}")


def placed(conversation: Conversation, media: Media, boxes: Boxes) -> Conversation:
    """The conversation with a numbered mark at the place of each image and video, and its objects as text.

    Raises RowError when there are more or fewer places than images.
    """
    notes = dict.fromkeys(boxes.notes(message.content for message in conversation.messages))
    messages = _placed(conversation.messages, media, media.images, notes)
    rejected = conversation.rejected
    if rejected is not None:
        images = media.images if media.rejected is None else media.rejected
        rejected = _placed(rejected, media, images, notes)
    return replace(
        conversation,
        messages=boxes.written(messages),
        rejected=None if rejected is None else boxes.written(rejected),
        notes=(*conversation.notes, *notes),
    )


def with_note_about_tags(conversation: Conversation) -> Conversation:
    """The conversation of a row without images, with a note if a text looks as if there were any."""
    messages = (*conversation.messages, *(conversation.rejected or ()))
    if not any(tag in message.content for message in messages for tag in (IMAGE_TAG, VIDEO_TAG)):
        return conversation
    return replace(conversation, notes=(*conversation.notes, PLAIN_TAGS))


def trimmed(conversation: Conversation) -> Conversation:
    """The conversation without white space around its marks, as templates that trim texts between images have it."""

    def of(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(replace(each, content=_SPACED.sub(r"\1", each.content)) for each in messages)

    rejected = conversation.rejected
    return replace(
        conversation, messages=of(conversation.messages), rejected=None if rejected is None else of(rejected)
    )


def _placed(
    messages: Sequence[Message], media: Media, images: Sequence[int], notes: dict[str, None]
) -> tuple[Message, ...]:
    waiting = {IMAGE_TAG: iter(images), VIDEO_TAG: iter(media.videos)}
    counts = {IMAGE_TAG: len(images), VIDEO_TAG: len(media.videos)}
    plain = {
        tag for tag, column in ((IMAGE_TAG, media.images or media.rejected), (VIDEO_TAG, media.videos)) if not column
    }
    for tag, count in counts.items():
        if count and not any(place == tag for message in messages for place in _places_in(message.content)):
            messages = _prepended(messages, tag * count)
            notes[PREPENDED] = None
    numbering = _Numbering(waiting=waiting, counts=counts, plain=plain)
    result = tuple(replace(message, content=numbering.of(message.content)) for message in messages)
    left = {tag: sum(1 for _ in numbers) for tag, numbers in waiting.items()}
    for tag, number in left.items():
        if number:
            raise RowError(MISMATCH, f"{counts[tag]} in its column, {counts[tag] - number} places {tag}")
    if len(set(numbering.found)) < len(numbering.found):
        raise RowError(MISMATCH, "one stands at two places")
    return result


def _places_in(text: str) -> Iterator[str]:
    """The tag of each place that takes the next image or video of a column."""
    for found in _TAGS.finditer(text):
        if found[2] is None:
            yield found[0]
        elif not found[1]:
            yield VIDEO_TAG if found[2] == "v" else IMAGE_TAG


def _prepended(messages: Sequence[Message], text: str) -> Sequence[Message]:
    """The text before the first question, or the first message if there is none."""
    first = next((place for place, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        first = 1 if messages[0].role == "system" and len(messages) > 1 else 0
    asked = messages[first]
    return (*messages[:first], replace(asked, content=text + asked.content), *messages[first + 1 :])


@dataclass(frozen=True, kw_only=True)
class _Numbering:
    """Numbers the places of texts. waiting: the numbers of those in columns. counts: how many there are. plain: tags
    that are text, as the row has no such column. found: the numbers that have a place.
    """

    waiting: Mapping[str, Iterator[int]]
    counts: Mapping[str, int]
    plain: Collection[str]
    found: list[int] = field(default_factory=list)

    def of(self, text: str) -> str:
        """The text with every place numbered."""
        text = _TAGS.sub(self._number, text)
        if NONCHARACTERS.search(MARK.sub("", text)):
            raise RowError("the text holds a noncharacter", "U+FDD0 or U+FDD1")
        return text

    def _number(self, match: re.Match[str]) -> str:
        if match[1]:
            self.found.append(int(match[1]))
            return match[0]
        tag = match[0] if match[2] is None else VIDEO_TAG if match[2] == "v" else IMAGE_TAG
        if match[2] is None and tag in self.plain:
            return match[0]
        number = next(self.waiting[tag], None)
        if number is None:
            raise RowError(MISMATCH, f"{self.counts[tag]} in its column, and more places {tag}")
        self.found.append(number)
        return mark(number, is_video=tag == VIDEO_TAG)
