"""One training step: the student answers from registers, the teacher is the model without them.

Up to the end of a row's first picture nothing depends on the registers, which come later. That
prefix is run once for all questions about the picture, for student and teacher alike, and without
gradient unless the base's weights are trained. A row of text has an empty prefix.

Shapes: r rows, s questions (all rows together), p tokens in a prefix, t tokens after it, a answer
positions and x text tokens (all questions together), v vocabulary, c classes kept of the teacher.

Source: Hinton et al. 2015, arXiv 1503.02531 (distillation); Romero et al. 2014, arXiv 1412.6550
(matching hidden states); the shared prefix is this project's.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from victorctl.collation import Batch
from victorctl.errors import VictorError
from victorctl.features import see, take
from victorctl.losses import divergence, likeliest, unlikeness
from victorctl.memory import COPIED
from victorctl.modeling_victor import (
    Images,
    Tokens,
    VictorCache,
    caller_tokens,
    drop_visual,
    next_positions,
)
from victorctl.recomputing import recomputing
from victorctl.rungs import projector
from victorctl.sections import TrainSection
from victorctl.teacher import Targets, TeacherCache


class Losses(NamedTuple):
    """Means over answer positions; of `hidden`, over text tokens and late layers."""

    total: Tensor
    cross_entropy: Tensor
    distill: Tensor
    hidden: Tensor


class Early(NamedTuple):
    """A prefix that has passed the layers that see visual tokens.

    States [r, p, d], who stands where, and those layers' keys and values.
    """

    hidden: Tensor
    tokens: Tokens
    cache: VictorCache


class Features(NamedTuple):
    """Visual tokens of a batch, every tensor a picture or a part of one [tokens, d].

    Those that stand in the prefixes, row by row; those after them, question by question; and all
    that a question is about, question by question.
    """

    first: list[Tensor]
    later: list[Tensor]
    all: list[Tensor]


class Lesson(NamedTuple):
    """What the teacher gives for a batch.

    Its targets, its states to match [late layers, x, d], and the prefix that it has read.
    """

    targets: Targets | None = None
    states: Tensor | None = None
    early: Early | None = None


class Distillation(nn.Module):
    """The loss of a batch, and the teacher's side of it.

    Args:
        model: A Victor model; what is to be trained requires a gradient, all else does not.
        settings: The recipe's `train`.
        known: The teacher's targets from before; None to compute them every time, as must be where
            hidden states are matched, which nobody keeps.
    """

    def __init__(
        self, model: PreTrainedModel, settings: TrainSection, known: TeacherCache | None = None
    ) -> None:
        super().__init__()
        self.model, self.settings, self.known = model, settings, known
        self.together: Callable[[bool], bool] = bool  # or what tells if so in any process
        self.each_alone = False  # where a layer must not run twice in a step that trains it
        self.asked, self.seconds = 0, 0.0  # questions that the teacher was asked, and the time
        self.text = model.get_decoder()
        self._no_split_modules = [type(self.text.layers[0]).__name__]  # FSDP cuts up one by one
        self.text.training = True  # in batches without a picture, all has a gradient, of zero
        self.lora = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def forward(
        self, batch: Batch, whole: Tensor | None = None, *, ask: bool = False
    ) -> Losses | None:
        """Compute the losses of a batch, which lies on the model's device.

        Args:
            batch: All that a step sees, or a part of it.
            whole: What `sizes` says of all parts together; losses are then this part's share.
            ask: Let the teacher answer what it has not answered before, and nothing else, as long
                as it is what it was; here, as weights that are cut up are whole in `forward` alone.

        Raises:
            ValueError: For what the model's own forward refuses.
            VictorError: If the teacher is not what it was, and an answer of it was not kept.
        """
        if ask:
            self._ask(batch)
            return None
        features = self._features(batch)
        lesson = self._lesson(batch, features)
        output = self._read(batch, features, lesson.early)
        logits = self.model.lm_head(output.last_hidden_state[batch.asked]).float()  # [a, v]
        cross_entropy = functional.cross_entropy(logits, batch.answers)
        distill = hidden = logits.new_zeros(())
        settings = self.settings
        if settings.distill > 0:
            targets = Targets(*(part.to(logits.device) for part in lesson.targets))
            distill = divergence(logits, targets, settings.temperature)
        if settings.hidden > 0:
            hidden = unlikeness(self._late_states(batch, output), lesson.states)
        if whole is not None:
            answers, words = (self.sizes(batch) / whole).float()
            cross_entropy, distill = answers * cross_entropy, answers * distill
            hidden = words * hidden
        total = settings.cross_entropy * cross_entropy
        total = total + settings.distill * distill + settings.hidden * hidden
        if settings.with_projector:  # has a gradient, of zero, where there is no picture
            total = total + 0 * sum(value.sum() for value in projector(self.model).values())
        return Losses(total, cross_entropy, distill, hidden)

    def sizes(self, batch: Batch) -> Tensor:
        """Count what losses are means over: answer positions, and text tokens [2]."""
        return torch.stack([batch.asked.sum(), self._words(batch).sum()]).double()

    def _lesson(self, batch: Batch, features: Features) -> Lesson:
        """Look up what the teacher said before, or else ask it, unless it has moved since."""
        if not self.settings.has_teacher:
            return Lesson()
        targets = self.known.find(batch.keys) if self.known else None
        if not self.together(targets is None):
            return Lesson(targets)
        if self.settings.moves_teacher:
            raise VictorError(
                f"{self.known.folder}: predictions of the unconverted model are gone from there",
                fix="start again with --overwrite, and let nothing remove them meanwhile",
            )
        return self._ask_teacher(batch, features)

    @torch.no_grad()
    def _ask(self, batch: Batch) -> None:
        if self.together(self.known.find(batch.keys) is None):
            self._ask_teacher(batch, self._features(batch))

    def _ask_teacher(self, batch: Batch, features: Features) -> Lesson:
        """Let the teacher answer a batch, and keep what it says if it is to be kept."""
        started = time.perf_counter()
        lesson = self._teach(batch, features)
        if self.known:
            targets = self.known.add(batch.keys, batch.counts, lesson.targets)
            lesson = lesson._replace(targets=targets)
        self.asked += len(batch.keys)
        self.seconds += time.perf_counter() - started
        return lesson

    def _features(self, batch: Batch) -> Features:
        """Run tower and projector, and say which of the features stand in prefixes."""
        if not batch.images:
            return Features([], [], [])
        with torch.set_grad_enabled(self.settings.with_projector and torch.is_grad_enabled()):
            seen = see(self.model, batch.images).pooler_output
        return share_out(seen, batch, self.model.config.image_token_id)

    def _embed(self, ids: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Embed tokens, features at the placeholders; the second result marks those."""
        embeddings = self.text.get_input_embeddings()(ids)
        visual = ids == self.model.config.image_token_id
        if features:
            embeddings = embeddings.masked_scatter(
                visual[..., None], torch.cat(list(features)).to(embeddings.dtype)
            )
        return embeddings, visual

    def _early(self, batch: Batch, features: Features) -> Early:
        """Run the prefix through the layers that see visual tokens."""
        embeddings, _ = self._embed(batch.prefix, features.first)
        images = self.model.model.find_images(batch.prefix, {"image": features.first})
        valid = batch.prefix_mask.bool()
        start = valid.new_zeros(len(valid), dtype=torch.long)
        tokens = caller_tokens(valid, next_positions(start, valid), images)
        cache = VictorCache(self.text.config)
        output = self.text.run_slice(0, self.text.victor.drop_layer, embeddings, tokens, cache)
        return Early(output.last_hidden_state, tokens, cache)

    def _read(
        self, batch: Batch, features: Features, early: Early | None
    ) -> BaseModelOutputWithPast:
        """Let the student read a batch; `early` is what the teacher has read of it, if it has."""
        cache = VictorCache(self.text.config)
        apart = torch.is_grad_enabled() and not self.settings.keeps_base
        with recomputing(self.text) if self.settings.checkpointing else nullcontext():
            if apart and self.each_alone:
                return self._read_alone(batch, features)
            if batch.prefix.shape[1]:
                with torch.set_grad_enabled(apart):
                    if early is None or apart:
                        early = self._early(batch, features)
                    cache = self._student_prefix(early)
                cache.batch_select_indices(batch.row)
            return self._read_suffix(batch, features, cache)

    def _student_prefix(self, early: Early) -> VictorCache:
        """Take the text before the picture through the late layers; visual tokens end here."""
        cache, k = early.cache, self.text.victor.drop_layer
        hidden, late = drop_visual(early.hidden, early.tokens)
        if hidden.shape[1]:
            self.text.run_slice(k, len(self.text.layers), hidden, late, cache)
        cache.record(early.hidden.shape[1], [early.tokens.valid, late.valid], early.tokens.position)
        cache.dropped = True
        return cache

    def _read_suffix(
        self, batch: Batch, features: Features, cache: VictorCache
    ) -> BaseModelOutputWithPast:
        """Read registers and questions after the prefix; states are [s, t, d]."""
        embeddings, visual = self._embed(batch.suffix, features.later)
        opening = batch.prefix_mask.any(dim=1)[batch.row].nonzero().squeeze(1)
        images = Images(visual, opening, torch.full_like(opening, -1))
        if features.later:
            later = self.model.model.find_images(batch.suffix, {"image": features.later})
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
            images=images if len(images.row) else None,
            use_cache=True,
            output_hidden_states=self._matched(),
        )

    def _read_alone(self, batch: Batch, features: Features) -> BaseModelOutputWithPast:
        """Read every question from its start, no prefix shared; states are [s, t, d]."""
        ids = torch.cat([batch.prefix[batch.row], batch.suffix], dim=1)
        embeddings, _ = self._embed(ids, features.all)
        images = None
        if features.all:
            images = self.model.model.find_images(ids, {"image": features.all})
        output = self.text(
            inputs_embeds=embeddings,
            attention_mask=torch.cat([batch.prefix_mask[batch.row], batch.suffix_mask], dim=1),
            images=images,
            use_cache=False,
            output_hidden_states=self._matched(),
        )
        suffix = slice(batch.prefix.shape[1], None)
        states = [None if each is None else each[:, suffix] for each in output.hidden_states or ()]
        return BaseModelOutputWithPast(output.last_hidden_state[:, suffix], hidden_states=states)

    def _matched(self) -> list[int] | bool:
        """Number the hidden states that are matched: what the layers without visual tokens give."""
        late = range(self.text.victor.drop_layer + 1, len(self.text.layers) + 1)
        return list(late) if self.settings.hidden > 0 else False

    def _late_states(self, batch: Batch, output: BaseModelOutputWithPast) -> Tensor:
        """Take the states that are matched, at the text after the first picture.

        All of the text and not its answers alone: answers read the keys and values of questions.
        """
        text = self._words(batch)
        return torch.stack([state[text] for state in output.hidden_states if state is not None])

    def _words(self, batch: Batch) -> Tensor:
        """Mark the text after the first picture, but of questions without an answer [s, t]."""
        text = batch.suffix_mask.bool() & (batch.suffix != self.model.config.image_token_id)
        return text & batch.asked.any(dim=1, keepdim=True)

    @torch.no_grad()
    def _teach(self, batch: Batch, features: Features) -> Lesson:
        """Let the unconverted model answer, every layer seeing every visual token."""
        k, layers = self.text.victor.drop_layer, len(self.text.layers)
        with self._untouched(), self.model.registers_off():
            early, cache = None, VictorCache(self.text.config)
            if batch.prefix.shape[1]:
                early = self._early(batch, features)
                cache, tokens = share(early.cache), early.tokens
                self.text.run_slice(k, layers, early.hidden, tokens, cache)
                cache.record(early.hidden.shape[1], [tokens.valid, tokens.valid], tokens.position)
            output = self._continue(batch, features, cache)
            logits = self.model.lm_head(output.last_hidden_state[batch.asked]).float()
        states = self._late_states(batch, output) if self.settings.hidden > 0 else None
        return Lesson(likeliest(logits, self.settings), states, early)

    def _continue(
        self, batch: Batch, features: Features, cache: VictorCache
    ) -> BaseModelOutputWithPast:
        """Read the questions, some at a time: each needs the prefix's keys and values for itself.

        States are [s, t, d].
        """
        embeddings, _ = self._embed(batch.suffix, features.later)
        valid, prefix = batch.suffix_mask.bool(), batch.prefix.shape[1]
        count = len(valid) if self.each_alone else max(len(batch.prefix), COPIED // max(prefix, 1))
        found = []
        parts = torch.arange(len(valid), device=valid.device).split(count)
        for some in parts:
            own = cache if some is parts[-1] else share(cache)  # of which nothing else is left then
            if prefix:
                own.batch_select_indices(batch.row[some])
            start = own.next_position if prefix else valid.new_zeros(len(some), dtype=torch.long)
            output = self.text(
                inputs_embeds=embeddings[some],
                attention_mask=own.mask(0, valid[some]),
                position_ids=next_positions(start, valid[some]),
                past_key_values=own,
                use_cache=True,
                output_hidden_states=self._matched(),
            )
            found.append((output.last_hidden_state, *(output.hidden_states or ())))
        last, *states = (
            None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True)
        )
        return BaseModelOutputWithPast(last, hidden_states=states)

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


def share(cache: VictorCache) -> VictorCache:
    """Give another reader a cache of its own over the same keys and values."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    return own


def share_out(features: Iterable[Tensor], batch: Batch, image: int) -> Features:
    """Share features out by how many visual tokens prefixes and questions have.

    Args:
        features: Of all pictures in reading order, some of which may be parts of one [tokens, d].
        batch: Whose pictures they are of.
        image: Token id of a placeholder.
    """
    left = deque(features)
    in_prefix, in_suffix = (
        (ids == image).sum(dim=1).tolist() for ids in (batch.prefix, batch.suffix)
    )
    rows = batch.row.tolist()
    first, later = [], []
    for row, count in enumerate(in_prefix):
        first.append(take(left, count))
        later.append(take(left, in_suffix[rows.index(row)]))
    return Features(
        [feature for own in first for feature in own],
        [feature for row in rows for feature in later[row]],
        [feature for row in rows for feature in (*first[row], *later[row])],
    )
