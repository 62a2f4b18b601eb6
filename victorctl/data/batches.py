"""Rows as tensors: a placeholder for each visual token, and a loss on answers only."""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_end
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin

from victorctl.data import chats
from victorctl.data.conversations import Row
from victorctl.data.formats import BadRow
from victorctl.data.pictures import process
from victorctl.errors import VictorError

IGNORED = -100  # label of a position without loss
KEY_BYTES = 16  # of what tells pictures or questions apart


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens.

    Args:
        input_ids: Token ids; one placeholder for each visual token.
        labels: Token ids of the answers and of the token that ends each; elsewhere IGNORED.
        prefix: How many tokens come before the first registers; 0 without a picture.
    """

    input_ids: list[int]
    labels: list[int]
    prefix: int

    @property
    def is_asked(self) -> bool:
        """Whether there is an answer to learn; the first token is never one."""
        return any(label != IGNORED for label in self.labels[1:])


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
        """How many tokens all conversations share, up to the first registers; else 0."""
        first = self.conversations[0]
        shared = first.input_ids[: first.prefix]
        same = all(each.input_ids[: each.prefix] == shared for each in self.conversations)
        return first.prefix if same else 0

    def by_prefix(self) -> "list[EncodedRow]":
        """Split into rows whose conversations share all up to the first registers."""
        groups: dict[tuple[int, ...], list[Encoded]] = {}
        for said in self.conversations:
            groups.setdefault(tuple(said.input_ids[: said.prefix]), []).append(said)
        return [replace(self, conversations=tuple(group)) for group in groups.values()]


def encode(row: Row, processor: ProcessorMixin, *, by_runs: bool = False) -> EncodedRow:
    """Turn a row into tokens to train on; nothing is ever cut off.

    Args:
        row: Its pictures are opened.
        processor: The model's.
        by_runs: Registers follow every run of placeholders, not every picture.

    Raises:
        VictorError: If a picture is not readable, or the chat template does not fit the row.
    """
    with _naming(row):
        messages = [conversation.messages for conversation in row.conversations]
        texts, answers = chats.render_answers(messages, processor)
        return _tokenize(row, processor, texts, answers, by_runs=by_runs)


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


def padding_token(processor: ProcessorMixin) -> int:
    """Name the token that fills prompts and answers up; any will do, as it is masked."""
    tokenizer = processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


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


def digest(images: Mapping[str, Tensor]) -> bytes:
    """Tell pictures apart from others, by what the processor made of them.

    Args:
        images: See `EncodedRow.images`.
    """
    made = hashlib.blake2b(digest_size=KEY_BYTES)
    for name, value in sorted(images.items()):
        made.update(f"{name} {tuple(value.shape)}".encode())
        made.update(value.contiguous().numpy())
    return made.digest()


def to_model(tensors: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Bring tensors to a model's device, and pictures to its number format."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in tensors.items()
    }


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
    except BadRow as error:
        raise error.at(f"row {row.id}") from error
    except VictorError as error:
        raise VictorError(f"row {row.id}: {error.problem}", fix=error.fix) from error


def _tokenize(
    row: Row,
    processor: ProcessorMixin,
    texts: Sequence[str],
    answers: Sequence[Sequence[chats.Span]],
    *,
    by_runs: bool = False,
) -> EncodedRow:
    """Tokenize rendered conversations, label their answers, and expand their placeholders."""
    images, pictures = process(row, processor)
    pairs = [_spell(*pair, processor) for pair in zip(texts, answers, strict=True)]
    texts, answers = zip(*pairs, strict=True)
    bos = processor.tokenizer.bos_token
    tokens = processor.tokenizer(
        [*texts],
        add_special_tokens=not (bos and texts[0].startswith(bos)),  # as `processor` does
        return_offsets_mapping=True,
    )
    labels = map(_label, tokens["input_ids"], tokens["offset_mapping"], answers)
    pairs = zip(tokens["input_ids"], labels, strict=True)
    image = processor.image_token_id
    expanded = (_expand(*pair, pictures, image, by_runs=by_runs) for pair in pairs)
    return EncodedRow(images, tuple(expanded))


def _spell(
    text: str, answers: Sequence[chats.Span], processor: ProcessorMixin
) -> tuple[str, list[chats.Span]]:
    """Write the token of pictures where chats name them otherwise, as AyaVision's do.

    Returns:
        The text, and where its answers are now.
    """
    name = processor.image_token
    token = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    gain = len(token) - len(name)
    moved = [[place + gain * text.count(name, 0, place) for place in span] for span in answers]
    return text.replace(name, token), [(start, end) for start, end in moved]


def _label(ids: list[int], offsets: list[chats.Span], answers: Sequence[chats.Span]) -> list[int]:
    """Label the tokens that touch an answer."""
    starts, stops = np.array(offsets).T
    touched = np.zeros(len(ids), dtype=bool)
    for first, last in answers:
        touched |= (starts < last) & (stops > first)
    return np.where(touched, ids, IGNORED).tolist()


def _expand(
    ids: list[int],
    labels: list[int],
    pictures: Sequence[list[int]],
    placeholder: int,
    *,
    by_runs: bool,
) -> Encoded:
    """Put each picture's tokens in the place of its one placeholder."""
    places = [place for place, token in enumerate(ids) if token == placeholder]
    if len(places) != len(pictures):
        problem = f"pictures in the rendered chat: {len(places)}, in the row: {len(pictures)}"
        raise VictorError(problem, fix="use a chat template that renders parts of type image")
    for place, picture in zip(reversed(places), reversed(pictures), strict=True):
        ids[place : place + 1] = picture
        labels[place : place + 1] = [IGNORED] * len(picture)
    if not places:
        return Encoded(ids, labels, 0)
    visual = [place for place, token in enumerate(ids) if token == placeholder]
    if by_runs:  # which pictures with nothing between them share
        visual = [place for rank, place in enumerate(visual) if place == visual[0] + rank]
    else:
        visual = visual[: pictures[0].count(placeholder)]
    return Encoded(ids, labels, visual[-1] + 1)
