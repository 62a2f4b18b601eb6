"""Optimiser steps that do the same in dearer ways, to measure ours against.

Shapes: s questions, p tokens in a prefix, t tokens after it, a answer positions (all questions
together), v vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from victorctl.collation import Batch
from victorctl.features import see
from victorctl.losses import divergence, likeliest
from victorctl.sections import TrainSection


@dataclass(frozen=True)
class Trainee:
    """What an optimiser step changes.

    Args:
        parameters: That require a gradient.
        optimizer: Of them.
        clip: Longest gradient.
    """

    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    clip: float

    def step(self, loss: Callable[[], Tensor]) -> None:
        """Compute a loss, its gradients, and move the parameters."""
        loss().backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True)
class Written:
    """The questions of a batch, each written out from its beginning.

    Args:
        ids: Tokens [s, p + t].
        mask: 1 for tokens [s, p + t].
        asked: Where the next token belongs to an answer [s, p + t].
        features: The one picture of each question, as the projector gives it.
    """

    ids: Tensor
    mask: Tensor
    asked: Tensor
    features: list[Tensor]

    def logits(self, model: PreTrainedModel) -> Tensor:
        """Let a model read all of it, and predict at answer positions alone [a, v]."""
        seen = BaseModelOutputWithPooling(None, self.features)
        output = model.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            mm_encoder_outputs={"image": seen},
            use_cache=False,
        )
        return model.lm_head(output.last_hidden_state[self.asked]).float()


def write_out(model: PreTrainedModel, batch: Batch) -> Written:
    """Write questions about one picture each out; a picture is seen once for all of them."""
    features = see(model, batch.images).pooler_output
    return Written(
        torch.cat([batch.prefix[batch.row], batch.suffix], dim=1),
        torch.cat([batch.prefix_mask[batch.row], batch.suffix_mask], dim=1),
        functional.pad(batch.asked, (batch.prefix.shape[1], 0)),
        [features[row] for row in batch.row.tolist()],
    )


def naive_loss(model: PreTrainedModel, settings: TrainSection, batch: Batch) -> Tensor:
    """Compute the loss of `Distillation` by two passes over whole sequences.

    Gradients flow through every position that the registers stand beside, and the teacher is asked
    every time.
    """
    written = write_out(model, batch)
    with torch.no_grad(), model.registers_off():
        targets = likeliest(written.logits(model), settings)
    logits = written.logits(model)
    cross_entropy = functional.cross_entropy(logits, batch.answers)
    distill = divergence(logits, targets, settings.temperature)
    return settings.cross_entropy * cross_entropy + settings.distill * distill


def answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the loss that LLaVA itself is fine-tuned with: cross-entropy on the answers."""
    return functional.cross_entropy(write_out(model, batch).logits(model), batch.answers)
