"""How a model answers: greedily, batched, in one of several ways, and how its answers begin."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
)

from victorctl.base_answers import DIGITS, First
from victorctl.data.batches import padding_token
from victorctl.methods.base import Method
from victorctl.methods.engine import Engine
from victorctl.questions import Prompts, Question, prepare

MODEL, BASE = "model", "base"
NEVER = 100.0  # nats that a token costs at most, however unlikely
FIRST_TOKENS = 32  # of the base's distribution over first tokens; all others count as one


@dataclass(frozen=True)
class Contestant:
    """A model in one of the ways in which it can answer.

    Args:
        model: May be shared: the ways are entered by turns.
        acting: Enters the way, given `Prompts.rows`.
        pictures: Whether it is shown the pictures.
        own_eyes: Whether it sees them in a way of its own: features of others are of no use.
        entered: Tells how many visual tokens entered each layer in its last prefill, row by row.
    """

    model: PreTrainedModel
    acting: Callable[[Sequence[int]], AbstractContextManager[None]]
    pictures: bool = True
    own_eyes: bool = False
    entered: Callable[[], list[list[int]]] | None = None


def by_method(way: Method, model: PreTrainedModel) -> Contestant:
    """Let a method act on a model's unconverted weights.

    Args:
        way: The method.
        model: A Victor model.
    """
    engine = Engine(way, model)

    def entered() -> list[list[int]]:
        return engine.entered

    return Contestant(model, engine.acting, way.pictures, way.sees, entered)


def settings_for(most: int, least: int, stop: Sequence[int], padding: int) -> GenerationConfig:
    """Set greedy generation up, every setting that `generate` would take from the model's own.

    Args:
        most: Stop after so many tokens.
        least: Do not stop before so many.
        stop: Tokens that end an answer.
        padding: What fills up shorter answers.
    """
    return GenerationConfig(
        max_new_tokens=most,
        min_new_tokens=least,
        eos_token_id=list(stop),
        pad_token_id=padding,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
    )


@torch.inference_mode()
def write(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    settings: GenerationConfig,
    watch: "Beginning | None" = None,
) -> Tensor:
    """Let a model write tokens after prompts, and return those alone [b, new]."""
    watching = LogitsProcessorList([] if watch is None else [watch])
    output = model.generate(**inputs, generation_config=settings, logits_processor=watching)
    return output[:, inputs["input_ids"].shape[1] :]


@dataclass(frozen=True)
class Greedy:
    """Greedy generation: what stops it, and how answers are read.

    Args:
        processor: The model's.
        stop: Tokens that end an answer.
    """

    processor: ProcessorMixin
    stop: tuple[int, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, processor: ProcessorMixin) -> "Greedy":
        """Stop where the model's own generation settings do, else at the end-of-text token."""
        stop = model.generation_config.eos_token_id
        stop = processor.tokenizer.eos_token_id if stop is None else stop
        return cls(processor, (stop,) if isinstance(stop, int) else tuple(stop))

    def generate(  # noqa: PLR0913
        self,
        who: Contestant,
        inputs: Mapping[str, Any],
        rows: Sequence[int],
        *,
        most: int,
        least: int = 0,
        watch: "Beginning | None" = None,
    ) -> Tensor:
        """Write tokens after prompts.

        Args:
            who: Writes.
            inputs: What its model takes.
            rows: See `Prompts.rows`.
            most: Stop after so many.
            least: Do not stop before so many.
            watch: Is shown how likely each first token was.

        Returns:
            The new tokens [b, most or fewer].
        """
        settings = settings_for(most, least, self.stop, padding_token(self.processor))
        with who.acting(rows):
            return write(who.model, inputs, settings, watch)

    def read(self, written: Tensor) -> list[str]:
        """Turn new tokens into answers."""
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]


class Beginning(LogitsProcessor):
    """Watches an answer's first token being chosen, and changes nothing."""

    log_probabilities: Tensor | None = None
    """Of every token to be the first [b, vocabulary]."""

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Keep what is seen first."""
        if self.log_probabilities is None:
            self.log_probabilities = scores.float().log_softmax(-1)
        return scores

    def likeliest(self) -> list[First]:
        """Keep of each row what a comparison needs."""
        count = min(FIRST_TOKENS, self.log_probabilities.shape[-1] - 1)
        top = self.log_probabilities.topk(count)  # [b, count]
        rest = self.log_probabilities.scatter(-1, top.indices, -torch.inf).logsumexp(-1)  # [b]
        rows = zip(top.indices.tolist(), top.values.tolist(), rest.tolist(), strict=True)
        return [
            First(tokens, [round(one, DIGITS) for one in logs], round(other, DIGITS))
            for tokens, logs, other in rows
        ]

    def divergence(self, base: Sequence[First]) -> list[float]:
        """Measure how far the chosen distributions are from the base's.

        Args:
            base: The base's, of each row.

        Returns:
            Kullback-Leibler divergences KL(base || this) in nats. Tokens that the base holds for
            unlikely count as one, so that they are bounds from below.
        """
        found = []
        for own, theirs in zip(self.log_probabilities.double(), base, strict=True):
            among = torch.tensor(theirs.tokens, device=own.device)
            others = own.index_fill(0, among, -torch.inf).logsumexp(0)
            ours = torch.cat([own[among], others[None]]).clamp(min=-NEVER)
            expected = ours.new_tensor([*theirs.log_probabilities, theirs.rest])
            terms = torch.where(expected > -torch.inf, expected.exp() * (expected - ours), 0.0)
            found.append(max(0.0, terms.sum().item()))  # rounding may leave less than nothing
        return found


class Shared:
    """What contestants share of a batch: its prompts, and what their common model sees.

    Args:
        asked: The batch.
        processor: The models'.
    """

    def __init__(self, asked: Sequence[Question], processor: ProcessorMixin) -> None:
        self.asked, self._processor = asked, processor
        self._prompts: dict[bool, Prompts] = {}
        self._inputs: dict[tuple[int, bool], dict[str, Any]] = {}

    def prompts(self, *, pictures: bool) -> Prompts:
        """Write the batch's prompts, with or without its pictures."""
        if pictures not in self._prompts:
            self._prompts[pictures] = prepare(self.asked, self._processor, pictures=pictures)
        return self._prompts[pictures]

    def inputs(self, who: Contestant) -> dict[str, Any]:
        """Make a contestant's inputs; its model sees the pictures once for all that share it."""
        if who.own_eyes:
            return self.prompts(pictures=True).for_model(who.model)
        key = id(who.model), who.pictures
        if key not in self._inputs:
            self._inputs[key] = self.prompts(pictures=who.pictures).seen_by(who.model)
        return self._inputs[key]
