"""What came of an evaluation's tasks: quality, predictions, answers that differ."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image

from victorctl.answering import BASE, MODEL
from victorctl.asking import Answers
from victorctl.exact import normalise
from victorctl.measures import (
    Comparison,
    Marked,
    Pair,
    agreement,
    draw,
    interval,
    pair,
    share,
)
from victorctl.tasks import DATA, Task


@dataclass(frozen=True)
class Finding:
    """One task, answered.

    Args:
        task: The questions.
        answers: To them.
        seed: Of the bootstrap.
    """

    task: Task
    answers: Answers
    seed: int

    @cached_property
    def marked(self) -> dict[str, Marked]:
        """The answers of everybody, marked."""
        rule, asked = self.task.scorer, self.task.asked
        return {name: Marked.of(rule, asked, of) for name, of in self.answers.texts.items()}

    @property
    def seeds(self) -> int | list[int]:
        """Of the task's own bootstrap: two tasks are not drawn alike."""
        name = self.task.name
        return self.seed if name == DATA else [self.seed, crc32(name.encode())]

    @cached_property
    def drawn(self) -> dict[str, np.ndarray] | None:
        """Everybody's shares with units drawn anew; None without a base to divide by."""
        if BASE not in self.marked:
            return None
        drawn = draw([*self.marked.values()], self.seeds)
        return drawn and dict(zip(self.marked, drawn, strict=True))

    def beside(self, name: str) -> Comparison:
        """Put one of those asked beside the base."""
        draws = self.drawn and (self.drawn[name], self.drawn[BASE])
        return Comparison(self.marked[name], self.marked.get(BASE), draws)

    def agreement(self) -> float | None:
        """Count how often model and base give the same answer."""
        return agreement(self.answers.texts[MODEL], self.answers.texts.get(BASE))

    def differing(self) -> int:
        """Count the questions to which model and base answer differently; 0 without a base."""
        if BASE not in self.marked:
            return 0
        return sum(_differs(self, place) for place in range(len(self.task.asked)))

    def by_type(self) -> dict[str, Any]:
        """Sum up each type of question by itself."""
        types, compared = dict.fromkeys(one.type for one in self.task.asked), self.beside(MODEL)
        return {type_: compared.of_type(type_, self.seeds) for type_ in types}

    def benchmark(self) -> dict[str, Any]:
        """Sum up a benchmark."""
        scorer, compared = self.task.scorer, self.beside(MODEL)
        return {
            "title": self.task.title,
            "questions": len(self.task.asked),
            "metric": scorer.main,
            "highest": scorer.highest,
            "score": compared.score(),
            "kept": compared.kept(),
            "interval": interval(compared.draws),
            "agreement": self.agreement(),
            "first_token_kl": _mean(self.answers.divergences or [None]),
            "metrics": compared.metrics(),
            "meanings": dict(scorer.meanings),
            "by_type": self.by_type(),
        }


def quality(findings: Sequence[Finding]) -> dict[str, Any]:
    """Sum up all tasks: of several, every number is the mean over them.

    Returns:
        `questions`, `accuracy`, `kept`, `interval`, `agreement`, `first_token_kl`, `differing`,
        `by_type` and `benchmarks` of `eval --json`.
    """
    accuracy = mean_score(findings, MODEL)
    own = len(findings) == 1 and findings[0].task.name == DATA
    rows = {one.task.name: one.beside(MODEL).row() for one in findings}
    return {
        "questions": sum(len(finding.task.asked) for finding in findings),
        "accuracy": accuracy,
        "kept": share(**accuracy),
        "interval": mean_interval(findings, MODEL),
        "agreement": _mean([finding.agreement() for finding in findings]),
        "first_token_kl": _mean(
            [_mean(finding.answers.divergences or [None]) for finding in findings]
        ),
        "by_type": findings[0].by_type() if own else rows,
        "differing": sum(finding.differing() for finding in findings),
        "benchmarks": {} if own else {one.task.name: one.benchmark() for one in findings},
    }


def mean_score(findings: Sequence[Finding], name: str) -> Pair:
    """Average the scores of one of those asked, and of the base, over all tasks."""
    scores = [finding.beside(name).normalised() for finding in findings]
    return pair(*(_mean([score[who] for score in scores]) for who in (MODEL, BASE)))


def mean_interval(findings: Sequence[Finding], name: str) -> list[float] | None:
    """Bound what is kept of the mean score; every task is drawn anew by itself."""
    drawn = [finding.beside(name).draws for finding in findings]
    if None in drawn:
        return None
    return interval(tuple(np.mean(each, axis=0) for each in zip(*drawn, strict=True)))


def mean_pairs(pairs: Sequence[Pair]) -> Pair:
    """Average pairs of numbers, each by itself."""
    return pair(*(_mean([one[who] for one in pairs]) for who in (MODEL, BASE)))


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else fmean(values)


def predictions(findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    """Yield a line for each question, in the order of the data."""
    for finding in findings:
        named = {} if finding.task.name == DATA else {"benchmark": finding.task.name}
        units: dict[Any, int] = {}
        for place, asked in enumerate(finding.task.asked):
            question = finding.task.questions[place].conversation.question
            yield {
                **named,
                "id": asked.id,
                "unit": units.setdefault(asked.unit, len(units)),
                "type": asked.type,
                "question": question,
                "answers": asked.answers,
                **{name: texts[place] for name, texts in _in_order(finding.answers.texts).items()},
                "right": {
                    name: of.marks[place]["right"] for name, of in _in_order(finding.marked).items()
                },
            }


def _in_order(by_name: dict[str, Any]) -> dict[str, Any]:
    """Put the model first."""
    return {MODEL: by_name[MODEL], **by_name}


def differences(findings: Sequence[Finding], most: int, seed: int) -> list[dict[str, Any]]:
    """Draw questions with pictures to which model and base answer differently, to be shown.

    Args:
        findings: All tasks.
        most: Show only so many.
        seed: Of the draw.
    """
    differing = [
        (finding, place)
        for finding in findings
        if BASE in finding.marked
        for place, question in enumerate(finding.task.questions)
        if question.row.images and _differs(finding, place)
    ]
    drawn = random.Random(seed).sample(range(len(differing)), min(most, len(differing)))
    return [_shown(*differing[number]) for number in sorted(drawn)]


def _differs(finding: Finding, place: int) -> bool:
    ours, theirs = (normalise(finding.answers.texts[who][place]) for who in (MODEL, BASE))
    return ours != theirs


def _shown(finding: Finding, place: int) -> dict[str, Any]:
    question, asked = finding.task.questions[place], finding.task.asked[place]
    named = {} if finding.task.name == DATA else {"benchmark": finding.task.name}
    return {
        **named,
        "id": asked.id,
        "picture": side_by_side(question.row.pictures()),
        "question": question.conversation.question,
        "answer": " / ".join(dict.fromkeys(asked.answers)),
        "type": asked.type,
        "model": finding.answers.texts[MODEL][place],
        "base": finding.answers.texts[BASE][place],
        "model_right": finding.marked[MODEL].right(place),
        "base_right": finding.marked[BASE].right(place),
    }


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures beside each other, from left to right."""
    width = sum(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole
