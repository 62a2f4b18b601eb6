"""Questions about pictures, and the batches of prompts that they become."""

import hashlib
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from victorctl.data import formats
from victorctl.data.batches import (
    KEY_BYTES,
    digest,
    join_images,
    pad,
    padding_token,
    prompts,
    to_model,
)
from victorctl.data.conversations import Conversation, Row
from victorctl.data.records import Embedded
from victorctl.features import see, take, taken


@dataclass(frozen=True)
class Question:
    """One question about the pictures of a row.

    Args:
        id: Name in the data.
        number: Place among all questions.
        row: Where its pictures are.
        conversation: Ends with its answer.
    """

    id: str
    number: int
    row: Row
    conversation: Conversation

    @property
    def key(self) -> int:
        """A number of the row's own, the same for all questions about its pictures."""
        return crc32(self.row.id.encode())

    @property
    def pictures(self) -> Hashable:
        """What the question is about: equal for questions about the same pictures."""
        files = self.row.images
        return (
            files
            if files and all(isinstance(file, Path | Embedded) for file in files)
            else self.row.id
        )

    @property
    def length(self) -> int:
        """Letters of its prompt, from which its tokens can be guessed without opening a picture."""
        return sum(len(formats.text_of(turn)) for turn in self.conversation.messages[:-1])


def questions(rows: Sequence[Row], limit: int | None) -> list[Question]:
    """List the questions of a data set, row after row.

    Args:
        rows: Their pictures stay closed.
        limit: Take only so many, from the start; None for all.
    """
    found: list[Question] = []
    for row in rows:
        for place, conversation in enumerate(row.conversations):
            if len(found) == limit:
                return found
            numbered = f"{row.id}/{place}" if len(row.conversations) > 1 else row.id
            found.append(Question(conversation.id or numbered, len(found), row, conversation))
    return found


def batches(asked: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Cut questions into batches of like length; those of a row stay together and share pictures.

    The longest come first: what does not fit into memory is known at once.

    Args:
        asked: In the order of the data.
        size: Questions in a batch.
    """
    rows = [list(group) for _, group in groupby(asked, key=lambda question: id(question.row))]
    rows.sort(
        key=lambda row: (len(row[0].row.images), max(question.length for question in row)),
        reverse=True,
    )
    ordered = [question for row in rows for question in row]
    yield from (ordered[start : start + size] for start in range(0, len(ordered), size))


class Size(NamedTuple):
    """The size of one question's prompt: visual and other tokens, and pictures."""

    visual: int
    text: int
    images: int


@dataclass(frozen=True)
class Prompts:
    """A batch of questions as models take them.

    Args:
        text: `input_ids` and `attention_mask`, padded on the left [b, n].
        pictures: What the processor makes of each row's pictures.
        shown: Place there of each question's.
        rows: A number for each question, see `Question.key`.
        sizes: Of each question.
    """

    text: dict[str, Tensor]
    pictures: list[Mapping[str, Tensor]]
    shown: list[int]
    rows: list[int]
    sizes: list[Size]

    def keys(self) -> list[str]:
        """Name each question after all that is read of it, its tokens and its pixels."""
        shown = [digest(images) for images in self.pictures]
        ids, mask = self.text["input_ids"], self.text["attention_mask"].bool()
        read = zip(self.shown, ids, mask, strict=True)
        return [
            hashlib.blake2b(
                shown[place] + row[there].numpy().tobytes(), digest_size=KEY_BYTES
            ).hexdigest()
            for place, row, there in read
        ]

    def for_model(self, model: PreTrainedModel) -> dict[str, Any]:
        """Make a model's inputs: every question with pictures of its own."""
        pictures = join_images([self.pictures[place] for place in self.shown])
        own = {name: pictures[name] for name in taken(model.forward, pictures)}
        return to_model(self.text | own, model)

    @torch.inference_mode()
    def seen_by(self, model: PreTrainedModel) -> dict[str, Any]:
        """Make a model's inputs: each picture is seen once, however many questions are about it."""
        text = to_model(self.text, model)
        pictures = join_images(self.pictures)
        if not pictures:
            return text
        made = see(model, pictures).pooler_output
        counts = {place: size.visual for place, size in zip(self.shown, self.sizes, strict=True)}
        left = deque(made)
        by_row = {place: take(left, counts[place]) for place in sorted(counts)}
        features = [feature for place in self.shown for feature in by_row[place]]
        joined = torch.stack(features) if isinstance(made, Tensor) else features
        return text | {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(None, joined)}}


def prepare(asked: Sequence[Question], processor: ProcessorMixin, *, pictures: bool) -> Prompts:
    """Open the pictures of a batch and write its prompts.

    Args:
        asked: Questions of one batch.
        processor: The model's.
        pictures: False to ask without them.

    Raises:
        VictorError: If a picture is not readable, or the chat template does not fit.
    """
    ids: list[list[int]] = []
    images: list[Mapping[str, Tensor]] = []
    shown: list[int] = []
    for _, group in groupby(asked, key=lambda question: id(question.row)):
        together = list(group)
        row = replace(together[0].row, conversations=tuple(one.conversation for one in together))
        row = row if pictures else _without_pictures(row)
        encoded = prompts(row, processor)
        ids += [conversation.input_ids for conversation in encoded.conversations]
        shown += [len(images)] * len(together)
        images.append(encoded.images)
    stacked, mask = pad(ids, side="left", value=padding_token(processor))
    counts = [len(question.row.images) if pictures else 0 for question in asked]
    return Prompts(
        text={"input_ids": stacked, "attention_mask": mask},
        pictures=images,
        shown=shown,
        rows=[question.key for question in asked],
        sizes=[_size(*one, processor) for one in zip(ids, counts, strict=True)],
    )


def _size(ids: list[int], images: int, processor: ProcessorMixin) -> Size:
    visual = ids.count(processor.image_token_id)
    return Size(visual, len(ids) - visual, images)


def _without_pictures(row: Row) -> Row:
    """Take the pictures out of a row and of what is said in it."""
    conversations = []
    for conversation in row.conversations:
        messages = tuple(
            message | {"content": [part for part in message["content"] if part["type"] == "text"]}
            for message in conversation.messages
        )
        conversations.append(replace(conversation, messages=messages))
    return replace(row, images=(), conversations=tuple(conversations))
