"""Answers of several models to the same questions: greedy, batched, and the same in any batch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from victorctl.data.batches import padding_token
from victorctl.questions import Prompts, Question, Size, batches, prepare
from victorctl.runtime import progress
from victorctl.sections import EvalSection


@dataclass(frozen=True)
class Contestant:
    """A model in one of the ways in which it can answer.

    Args:
        model: May be shared: the ways are entered by turns.
        acting: Enters the way, given `Prompts.rows`.
        pictures: Whether it is shown the pictures.
    """

    model: PreTrainedModel
    acting: Callable[[Sequence[int]], AbstractContextManager[None]]
    pictures: bool = True


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
def write(model: PreTrainedModel, inputs: Mapping[str, Any], settings: GenerationConfig) -> Tensor:
    """Let a model write tokens after prompts, and return those alone [b, new]."""
    output = model.generate(**inputs, generation_config=settings)
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

    def generate(
        self,
        who: Contestant,
        inputs: Mapping[str, Any],
        rows: Sequence[int],
        *,
        most: int,
        least: int = 0,
    ) -> Tensor:
        """Write tokens after prompts.

        Args:
            who: Writes.
            inputs: What its model takes.
            rows: See `Prompts.rows`.
            most: Stop after so many.
            least: Do not stop before so many.

        Returns:
            The new tokens [b, most or fewer].
        """
        settings = settings_for(most, least, self.stop, padding_token(self.processor))
        with who.acting(rows):
            return write(who.model, inputs, settings)

    def read(self, written: Tensor) -> list[str]:
        """Turn new tokens into answers."""
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]


class Shared:
    """What contestants share of a batch: its prompts, and what their common model sees.

    Args:
        asked: The batch.
        processor: The models'.
    """

    def __init__(self, asked: Sequence[Question], processor: ProcessorMixin) -> None:
        self._asked, self._processor = asked, processor
        self._prompts: dict[bool, Prompts] = {}
        self._inputs: dict[tuple[int, bool], dict[str, Any]] = {}

    def prompts(self, *, pictures: bool) -> Prompts:
        """Write the batch's prompts, with or without its pictures."""
        if pictures not in self._prompts:
            self._prompts[pictures] = prepare(self._asked, self._processor, pictures=pictures)
        return self._prompts[pictures]

    def inputs(self, who: Contestant) -> dict[str, Any]:
        """Make a contestant's inputs; its model sees the pictures once for all that share it."""
        key = id(who.model), who.pictures
        if key not in self._inputs:
            self._inputs[key] = self.prompts(pictures=who.pictures).seen_by(who.model)
        return self._inputs[key]


@dataclass(frozen=True)
class Answers:
    """What was answered, in the order of the data.

    Args:
        texts: Answers of each contestant, by its name.
        sizes: Of each question, with its pictures.
    """

    texts: dict[str, list[str]]
    sizes: list[Size]


def ask(
    asked: Sequence[Question],
    contestants: Mapping[str, Contestant],
    greedy: Greedy,
    settings: EvalSection,
    *,
    quiet: bool,
) -> Answers:
    """Put all questions to all contestants; pictures are opened once, a batch at a time.

    Args:
        asked: In the order of the data.
        contestants: By name; the first is shown pictures.
        greedy: Generates.
        settings: Size of a batch, and longest answer.
        quiet: Show no progress.
    """
    texts: dict[str, dict[int, str]] = {name: {} for name in contestants}
    sizes: dict[int, Size] = {}
    with progress("answers", len(asked) * len(contestants), quiet=quiet) as bar:
        for batch in batches(asked, settings.batch_size):
            numbers = [question.number for question in batch]
            shared = Shared(batch, greedy.processor)
            sizes |= zip(numbers, shared.prompts(pictures=True).sizes, strict=True)
            for name, who in contestants.items():
                inputs, rows = shared.inputs(who), shared.prompts(pictures=who.pictures).rows
                written = greedy.generate(who, inputs, rows, most=settings.max_new_tokens)
                texts[name] |= zip(numbers, greedy.read(written), strict=True)
                bar.advance(len(batch), name)
    return Answers(
        {name: [of[number] for number in range(len(asked))] for name, of in texts.items()},
        [sizes[number] for number in range(len(asked))],
    )
