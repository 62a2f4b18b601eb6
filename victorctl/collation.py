"""Stack the questions of a step, cut at the end of each row's first picture.

Shapes: r rows, s questions (all rows together), p tokens in a prefix, t tokens after it, a answer
positions (all questions together).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from victorctl.data.batches import (
    IGNORED,
    KEY_BYTES,
    Encoded,
    EncodedRow,
    digest,
    join_images,
    pad,
)


@dataclass(frozen=True)
class Batch:
    """Questions about pictures, cut at the end of each row's first picture; text is all suffix.

    Args:
        images: What the processor made of every picture, in reading order.
        prefix: Tokens to the end of the first picture, padded on the left [r, p].
        prefix_mask: 1 for tokens [r, p].
        row: Row of each question [s].
        suffix: Tokens after the prefix, padded on the right [s, t].
        suffix_mask: 1 for tokens [s, t].
        labels: Answers; IGNORED elsewhere [s, t].
        keys: What identifies the input of each question that has answers, however it was batched.
    """

    images: dict[str, Tensor]
    prefix: Tensor
    prefix_mask: Tensor
    row: Tensor
    suffix: Tensor
    suffix_mask: Tensor
    labels: Tensor
    keys: tuple[bytes, ...]

    def to(self, device: torch.device) -> "Batch":
        """Move every tensor."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(
            self, images={name: value.to(device) for name, value in self.images.items()}, **moved
        )

    def tensors(self) -> dict[str, Tensor]:
        """Name every tensor, as a file has them."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        own |= {f"images.{name}": value for name, value in self.images.items()}
        return {
            name: value.byte() if value.dtype == torch.bool else value
            for name, value in own.items()
        }

    @property
    def asked(self) -> Tensor:
        """Where the next token belongs to an answer [s, t]."""
        following = self.labels[:, 1:] != IGNORED
        return functional.pad(following, (0, 1))

    @property
    def answers(self) -> Tensor:
        """Tokens of the answers [a]."""
        return self.labels[:, 1:][self.asked[:, :-1]]

    @property
    def counts(self) -> list[int]:
        """Answer positions of each question that has any."""
        return [count for count in self.asked.sum(dim=1).tolist() if count]


def collate(rows: Sequence[EncodedRow], pad_id: int) -> Batch:
    """Cut the conversations at the end of their first picture and stack them.

    Args:
        rows: Encoded rows; one whose conversations begin differently counts as several.
        pad_id: Token that fills up.
    """
    rows = [part for row in rows for part in row.by_prefix()]
    pairs = [(number, said) for number, row in enumerate(rows) for said in row.conversations]
    starts = [row.conversations[0].input_ids[: row.prefix] for row in rows]
    prefix, prefix_mask = pad(starts, side="left", value=pad_id)
    suffix, suffix_mask = pad(
        [said.input_ids[rows[number].prefix :] for number, said in pairs],
        side="right",
        value=pad_id,
    )
    labels, _ = pad(
        [said.labels[rows[number].prefix :] for number, said in pairs], side="right", value=IGNORED
    )
    digests = [digest(row.images) for row in rows]
    return Batch(
        images=join_images([row.images for row in rows]),
        prefix=prefix,
        prefix_mask=prefix_mask,
        row=torch.tensor([number for number, _ in pairs]),
        suffix=suffix,
        suffix_mask=suffix_mask,
        labels=labels,
        keys=tuple(_key(digests[number], said) for number, said in pairs if said.is_asked),
    )


def _key(pictures: bytes, said: Encoded) -> bytes:
    """Tell a question apart from others: by what is read, and which of it is the answer."""
    tokens = torch.tensor([said.input_ids, said.labels]).numpy().tobytes()
    return hashlib.blake2b(pictures + tokens, digest_size=KEY_BYTES).digest()
