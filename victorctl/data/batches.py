"""Rows as tensors: a placeholder for each visual token, and a loss on answers only."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_end
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from victorctl.data import chats
from victorctl.data.conversations import Row
from victorctl.errors import VictorError

IGNORED = -100  # label of a position without loss


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens.

    Args:
        input_ids: Token ids; one placeholder for each visual token.
        labels: Token ids of the answers and of the token that ends each; elsewhere IGNORED.
        prefix: How many tokens there are up to the last of the first picture; 0 without one.
    """

    input_ids: list[int]
    labels: list[int]
    prefix: int


@dataclass(frozen=True)
class EncodedRow:
    """Conversations about the same pictures.

    Args:
        images: What the processor makes of the pictures (`pixel_values`, ...); empty without any.
        conversations: In the order of the row.
    """

    images: dict[str, Tensor]
    conversations: tuple[Encoded, ...]

    @property
    def prefix(self) -> int:
        """How many tokens all conversations share, up to the first picture's last; else 0."""
        first = self.conversations[0]
        shared = first.input_ids[: first.prefix]
        same = all(each.input_ids[: each.prefix] == shared for each in self.conversations)
        return first.prefix if same else 0


def encode(row: Row, processor: ProcessorMixin) -> EncodedRow:
    """Turn a row into tokens to train on; nothing is ever cut off.

    Raises:
        VictorError: If a picture is not readable, or the chat template does not fit the row.
    """
    with _naming(row):
        messages = [conversation.messages for conversation in row.conversations]
        texts, answers = chats.render_answers(messages, processor)
        return _tokenize(row, processor, texts, answers)


def prompts(row: Row, processor: ProcessorMixin) -> EncodedRow:
    """Turn a row into prompts: what comes before each last answer, and the answer's opening.

    Raises:
        VictorError: If a picture is not readable, or the chat template does not fit the row.
    """
    with _naming(row):
        messages = [conversation.messages[:-1] for conversation in row.conversations]
        texts = chats.render(messages, processor, prompt=True)
        return _tokenize(row, processor, texts, [[] for _ in texts])


def pad(
    sequences: Sequence[Sequence[int]], *, side: Literal["left", "right"], value: int
) -> tuple[Tensor, Tensor]:
    """Stack sequences to the length of the longest.

    Shapes: b sequences, n tokens in the longest.

    Args:
        sequences: Token ids or labels.
        side: Where the padding goes.
        value: What it is.

    Returns:
        Padded sequences [b, n], and a mask [b, n] with 1 at tokens and 0 at padding.
    """
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    stack = functools.partial(pad_sequence, batch_first=True, padding_side=side)
    return stack(rows, padding_value=value), stack([torch.ones_like(row) for row in rows])


def join_images(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put the pictures of several rows after one another; rows without a picture add nothing.

    Where sizes differ (in the number of tiles, say), the smaller are filled up with zeros at the
    end, as processors do.

    Shapes: p_i pictures in row i, p in all.

    Args:
        rows: `EncodedRow.images`, every tensor [p_i, ...].

    Returns:
        Tensors [p, ...] by name.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _concatenate([row[name] for row in rows if name in row]) for name in names}


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    largest = np.max([tensor.shape[1:] for tensor in tensors], axis=0, initial=0)
    filled = []
    for tensor in tensors:
        missing = largest - np.array(tensor.shape[1:], dtype=int)
        filled.append(pad_end(tensor, [int(n) for size in missing[::-1] for n in (0, size)]))
    return torch.cat(filled)  # [p, ...]


@contextmanager
def _naming(row: Row) -> Iterator[None]:
    """Let errors say which row they are about."""
    try:
        yield
    except VictorError as error:
        raise VictorError(f"row {row.id}: {error.problem}", fix=error.fix) from error


def _tokenize(
    row: Row,
    processor: ProcessorMixin,
    texts: Sequence[str],
    answers: Sequence[Sequence[chats.Span]],
) -> EncodedRow:
    """Expand the placeholders of rendered conversations, tokenize them, and label their answers."""
    images, expansions = _process(row, processor)
    for text in texts:
        shown = text.count(processor.image_token)
        if shown != len(expansions):
            problem = f"pictures in the rendered chat: {shown}, in the row: {len(expansions)}"
            raise VictorError(problem, fix="use a chat template that renders parts of type image")
    bos = processor.tokenizer.bos_token
    expanded, pictures = processor.get_text_with_replacements([*texts], expansions * len(texts))
    tokens = processor.tokenizer(
        expanded,
        add_special_tokens=not (bos and texts[0].startswith(bos)),  # as `processor` does
        return_offsets_mapping=True,
    )
    parts = zip(tokens["input_ids"], tokens["offset_mapping"], answers, pictures, strict=True)
    return EncodedRow(images, tuple(_label(*part, processor.image_token_id) for part in parts))


def _process(row: Row, processor: ProcessorMixin) -> tuple[dict[str, Tensor], list[str]]:
    """Make a row's tensors, and for each picture the text of its placeholders."""
    if not row.images:
        return {}, []
    processed = processor(
        images=[row.pictures()],
        text=[processor.image_token * len(row.images)],
        images_kwargs={"return_tensors": "pt"},  # nothing else becomes a tensor
        return_text_replacement_offsets=True,
    )
    images = {name: value for name, value in processed.items() if isinstance(value, Tensor)}
    (pictures,) = processed["text_replacement_offsets"]
    return images, [picture["replacement"] for picture in pictures]


def _label(
    ids: list[int],
    offsets: list[chats.Span],
    answers: Sequence[chats.Span],
    pictures: Sequence[Mapping[str, Any]],
    placeholder: int,
) -> Encoded:
    """Label the tokens that touch an answer; answers are placed as before expansion."""
    tokens, (starts, stops) = np.array(ids), np.array(offsets).T
    labels = np.full_like(tokens, IGNORED)
    for answer in answers:
        first, last = (_expanded(place, pictures) for place in answer)
        touched = (starts < last) & (stops > first)
        labels[touched] = tokens[touched]
    prefix = 0
    if pictures:
        visual = (tokens == placeholder) & (starts < pictures[0]["new_span"][1])
        prefix = int(visual.nonzero()[0][-1]) + 1
    return Encoded(ids, labels.tolist(), prefix)


def _expanded(place: int, pictures: Sequence[Mapping[str, Any]]) -> int:
    """Say where a character is after expansion."""
    before = (picture for picture in reversed(pictures) if picture["span"][1] <= place)
    picture = next(before, {"span": (0, 0), "new_span": (0, 0)})
    return place + picture["new_span"][1] - picture["span"][1]
