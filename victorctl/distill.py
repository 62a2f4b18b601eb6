"""One training step: the student answers from registers, the teacher is the model without them.

Up to the end of a row's first picture nothing depends on the registers, which come later. That
prefix is run once for all questions about the picture, for student and teacher alike, and without
gradient unless the layers themselves are trained.

Shapes: r rows, s questions (all rows together), p tokens in a prefix, t tokens after it, a answer
positions (all questions together), v vocabulary, c classes kept of the teacher.

Source: Hinton et al. 2015, arXiv 1503.02531 (distillation); the shared prefix is this project's.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from victorctl.data.batches import IGNORED, Encoded, EncodedRow, join_images, pad
from victorctl.modeling_victor import (
    Images,
    Tokens,
    VictorCache,
    caller_tokens,
    drop_visual,
    next_positions,
)
from victorctl.recipe import TrainSection
from victorctl.teacher import KEY_BYTES, Targets, TeacherCache

CERTAIN = 1e-6  # probability left to the classes that were not kept, below which it does not count


@dataclass(frozen=True)
class Batch:
    """Questions about pictures, cut at the end of each row's first picture.

    Args:
        images: What the processor made of every picture, in reading order.
        pictures: Pictures of each row [r].
        prefix: Tokens to the end of the first picture, padded on the left [r, p].
        prefix_mask: 1 for tokens [r, p].
        row: Row of each question [s].
        suffix: Tokens after the prefix, padded on the right [s, t].
        suffix_mask: 1 for tokens [s, t].
        labels: Answers; IGNORED elsewhere [s, t].
        keys: What identifies each question's input, however it was batched.
    """

    images: dict[str, Tensor]
    pictures: tuple[int, ...]
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
        """Answer positions of each question."""
        return self.asked.sum(dim=1).tolist()


def collate(rows: Sequence[EncodedRow], pad_id: int) -> Batch:
    """Cut the conversations at the end of their first picture and stack them.

    Args:
        rows: Encoded rows with pictures; one whose conversations begin differently counts as
            several.
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
    digests = [_digest(row) for row in rows]
    return Batch(
        images=join_images([row.images for row in rows]),
        pictures=tuple(len(row.images["pixel_values"]) for row in rows),
        prefix=prefix,
        prefix_mask=prefix_mask,
        row=torch.tensor([number for number, _ in pairs]),
        suffix=suffix,
        suffix_mask=suffix_mask,
        labels=labels,
        keys=tuple(_key(digests[number], said) for number, said in pairs),
    )


class Losses(NamedTuple):
    """Means over answer positions."""

    total: Tensor
    cross_entropy: Tensor
    distill: Tensor


class Early(NamedTuple):
    """A prefix that has passed the layers that see visual tokens.

    States [r, p, d], who stands where, and those layers' keys and values.
    """

    hidden: Tensor
    tokens: Tokens
    cache: VictorCache

    def share(self) -> VictorCache:
        """Give a second reader a cache of its own over the same keys and values."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache


class Distillation(nn.Module):
    """The loss of a batch, and the teacher's side of it.

    Args:
        model: A Victor model; what is to be trained requires a gradient, all else does not.
        settings: The recipe's `train`.
        known: The teacher's targets from before; None to compute them every time.
    """

    def __init__(
        self, model: PreTrainedModel, settings: TrainSection, known: TeacherCache | None = None
    ) -> None:
        super().__init__()
        self.model, self.settings, self.known = model, settings, known
        self.text = model.model.language_model
        self.lora = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def forward(self, batch: Batch) -> Losses:
        """Compute the losses of a batch, which lies on the model's device.

        Raises:
            ValueError: For what the model's own forward refuses.
        """
        features, early, targets = self._features(batch), None, None
        if self.settings.distill > 0:
            targets = self.known.find(batch.keys) if self.known else None
            if targets is None:
                targets, early = self._teach(batch, features)
                if self.known:
                    targets = self.known.add(batch.keys, batch.counts, targets)
            targets = Targets(*(part.to(features[0].device) for part in targets))
        with torch.set_grad_enabled(bool(self.lora) and torch.is_grad_enabled()):
            if early is None or self.lora:
                early = self._early(batch, features)
            cache = self._student_prefix(early)
        hidden = self._read_suffix(batch, features, cache)
        logits = self.model.lm_head(hidden[batch.asked]).float()  # [a, v]
        cross_entropy = functional.cross_entropy(logits, batch.answers)
        distill = logits.new_zeros(())
        if targets is not None:
            distill = divergence(logits, targets, self.settings.temperature)
        total = self.settings.cross_entropy * cross_entropy + self.settings.distill * distill
        return Losses(total, cross_entropy, distill)

    @torch.no_grad()
    def _features(self, batch: Batch) -> list[Tensor]:
        """Run tower and projector; one tensor [visual tokens, d] a picture."""
        return list(
            self.model.model.get_image_features(**batch.images, return_dict=True).pooler_output
        )

    def _embed(self, ids: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embed tokens, features at the placeholders; the second result marks those."""
        embeddings = self.text.get_input_embeddings()(ids)
        visual = ids == self.model.config.image_token_id
        if features:
            embeddings = embeddings.masked_scatter(
                visual[..., None], torch.cat(list(features)).to(embeddings.dtype)
            )
        return embeddings, visual

    def _early(self, batch: Batch, features: list[Tensor]) -> Early:
        """Run the prefix through the layers that see visual tokens."""
        firsts = _firsts(batch, features)
        embeddings, _ = self._embed(batch.prefix, firsts)
        images = self.model.model._images(batch.prefix, [len(feature) for feature in firsts])
        valid = batch.prefix_mask.bool()
        start = valid.new_zeros(len(valid), dtype=torch.long)
        tokens = caller_tokens(valid, next_positions(start, valid), images)
        cache = VictorCache(self.text.config)
        output = self.text.run_slice(0, self.text.victor.drop_layer, embeddings, tokens, cache)
        return Early(output.last_hidden_state, tokens, cache)

    def _student_prefix(self, early: Early) -> VictorCache:
        """Take the text before the picture through the late layers; visual tokens end here."""
        cache, k = early.cache, self.text.victor.drop_layer
        hidden, late = drop_visual(early.hidden, early.tokens)
        if hidden.shape[1]:
            self.text.run_slice(k, len(self.text.layers), hidden, late, cache)
        cache.record(early.hidden.shape[1], [early.tokens.valid, late.valid], early.tokens.position)
        cache.dropped = True
        return cache

    def _read_suffix(self, batch: Batch, features: list[Tensor], cache: VictorCache) -> Tensor:
        """Read registers and questions after the prefix; states [s, t, d]."""
        cache.batch_select_indices(batch.row)
        others = _others(batch, features)
        embeddings, visual = self._embed(batch.suffix, others)
        opening = torch.arange(len(batch.row), device=visual.device)
        images = Images(visual, opening, torch.full_like(opening, -1))
        if others:
            later = self.model.model._images(batch.suffix, [len(feature) for feature in others])
            order = torch.cat([opening, later.row]).argsort(stable=True)
            images = Images(
                visual,
                torch.cat([opening, later.row])[order],
                torch.cat([images.column, later.column])[order],
            )
        return self.text(
            inputs_embeds=embeddings,
            attention_mask=batch.suffix_mask,
            past_key_values=cache,
            images=images,
            use_cache=True,
        ).last_hidden_state

    @torch.no_grad()
    def _teach(self, batch: Batch, features: list[Tensor]) -> tuple[Targets, Early]:
        """Let the unconverted model answer, every layer seeing every visual token."""
        k, layers = self.text.victor.drop_layer, len(self.text.layers)
        with self._untouched(), self.model.registers_off():
            early = self._early(batch, features)
            cache, tokens = early.share(), early.tokens
            self.text.run_slice(k, layers, early.hidden, tokens, cache)
            cache.record(early.hidden.shape[1], [tokens.valid, tokens.valid], tokens.position)
            cache.batch_select_indices(batch.row)
            embeddings, _ = self._embed(batch.suffix, _others(batch, features))
            valid = batch.suffix_mask.bool()
            hidden = self.text(
                inputs_embeds=embeddings,
                attention_mask=cache.mask(0, valid),
                position_ids=next_positions(cache.next_position, valid),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = self.model.lm_head(hidden[batch.asked]).float()
        log_probability = (logits / self.settings.temperature).log_softmax(dim=-1)
        best = log_probability.topk(min(self.settings.top_k, logits.shape[-1]))
        return Targets(best.indices, best.values), early

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Switch merged-to-be updates off for a while."""
        for module in self.lora:
            module.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for module in self.lora:
                module.enable_adapters(enabled=True)


def divergence(logits: Tensor, targets: Targets, temperature: float) -> Tensor:
    """Measure how far a student is from the teacher: KL(teacher || student), mean over positions.

    Classes that were not kept count as one. The result is scaled by the squared temperature, so
    that gradients keep their size.

    Args:
        logits: The student's [a, v].
        targets: The teacher's likeliest classes.
        temperature: At which both are compared; the targets were made at the same.
    """
    student = (logits / temperature).log_softmax(dim=-1).gather(1, targets.index)
    teacher = targets.log_probability
    kept = (teacher.exp() * (teacher - student)).sum(dim=-1)
    rest = 1 - teacher.exp().sum(dim=-1)
    student_rest = (1 - student.exp().sum(dim=-1)).clamp(min=CERTAIN)
    tail = rest.clamp(min=CERTAIN) * (rest.clamp(min=CERTAIN).log() - student_rest.log())
    return (kept + torch.where(rest > CERTAIN, tail, 0)).mean() * temperature**2


def _firsts(batch: Batch, features: list[Tensor]) -> list[Tensor]:
    """Features of each row's first picture."""
    return [pictures[0] for pictures in _by_row(batch, features)]


def _others(batch: Batch, features: list[Tensor]) -> list[Tensor]:
    """Features of every question's further pictures."""
    pictures = _by_row(batch, features)
    return [feature for row in batch.row.tolist() for feature in pictures[row][1:]]


def _by_row(batch: Batch, features: list[Tensor]) -> list[list[Tensor]]:
    left = iter(features)
    return [list(islice(left, count)) for count in batch.pictures]


def _digest(row: EncodedRow) -> bytes:
    """Tell a row's pictures apart from others."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name, value in sorted(row.images.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy())
    return digest.digest()


def _key(pictures: bytes, said: Encoded) -> bytes:
    """Tell a question apart from others: by what is read, and which of it is the answer."""
    tokens = torch.tensor([said.input_ids, said.labels]).numpy().tobytes()
    return hashlib.blake2b(pictures + tokens, digest_size=KEY_BYTES).digest()
