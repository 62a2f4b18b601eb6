"""Answers that several people gave to one question: how VQA and its kin level and count them."""

import functools
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from statistics import mean
from typing import NamedTuple

SHORT = "\nAnswer the question using a single word or phrase."
ENOUGH = 3  # others who give an answer make it right

SHORTENED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905  (a word a line would be two pages)
CONTRACTIONS = (
    {  # an apostrophe is missing
        word[:place] + word[place + 1 :]: word
        for word in SHORTENED
        for place, sign in enumerate(word)
        if sign == "'"
    }
    | {"somebody'd": "somebodyd"}
)
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", "zero": "0"} | {word: str(n) for n, word in enumerate(NUMBERS, start=1)}
ARTICLES = ("a", "an", "the")
SIGNS = ';/[]"{}()=+\\_->@<`,?!'
STOPS = 32  # are left out at the most: a flag of `re` stands where a count belongs
GROUPED = re.compile(r"\d,+\d")  # as in 1,000
STOP = re.compile(r"\.(?!\d)")


def level(answer: str) -> str:
    """Level an answer as TextVQA and VizWiz do: case, signs, articles, numbers, apostrophes.

    Source: lmms-eval 0.7.3, tasks/_task_utils/vqa_eval_metric.py, lines 178-213.
    """
    spaced = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return level_less(one_line(spaced))


def one_line(answer: str) -> str:
    """Make spaces of the ends of lines and of tabs; leave out those around."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=2**16)
def level_less(answer: str) -> str:
    """Level a line as VQA does: signs, articles, numbers, apostrophes; case last.

    Source: lmms-eval 0.7.3, tasks/vqav2/utils.py, lines 31-35.
    """
    return _level_words(_level_signs(answer))


def _level_signs(answer: str) -> str:
    """Leave out signs beside a space; others become one, unless some digits are grouped.

    Source: lmms-eval 0.7.3, tasks/_task_utils/vqa_eval_metric.py, lines 183-191.
    """
    grouped = GROUPED.search(answer)
    gone = {
        sign: "" if grouped or f"{sign} " in answer or f" {sign}" in answer else " "
        for sign in SIGNS
    }
    return STOP.sub("", answer.translate(str.maketrans(gone)), STOPS)


def _level_words(answer: str) -> str:
    """Write numbers up to ten as digits, and apostrophes where they belong; leave out articles.

    Source: lmms-eval 0.7.3, tasks/_task_utils/vqa_eval_metric.py, lines 193-206.
    """
    words = (DIGITS.get(word, word) for word in answer.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


Given = tuple[str, Hashable]
"""One person's answer, and what tells it apart from an equal one of another person."""


def numbered(answers: Iterable[str]) -> list[Given]:
    """Tell answers apart by their places."""
    return [(answer, number) for number, answer in enumerate(answers)]


def credit(given: Sequence[Given]) -> dict[str, float]:
    """Say what each answer is worth: the mean over people, of whom each is left out once.

    An answer that three of the others gave is right; for each that is missing, a third is lost.

    Args:
        given: Answers; those that nothing tells apart are left out together.

    Returns:
        From 0 to 1, by answer; one that nobody gave is worth 0.

    Source: lmms-eval 0.7.3, tasks/vqav2/utils.py, lines 37-42.
    """
    counts, alike = Counter(answer for answer, _ in given), Counter(given)
    return {
        answer: _mean(tuple(count - (alike[one] if one[0] == answer else 0) for one in given))
        for answer, count in counts.items()
    }


class Official(NamedTuple):
    """What answers are worth by VQA's own code.

    Args:
        worth: As `credit` says.
        levels: False where all gave the same: then nothing is levelled, not even case.
    """

    worth: dict[str, float]
    levels: bool

    def mark(self, answer: str) -> float:
        """Mark an answer, from 0 to 1."""
        line = one_line(answer)
        return self.worth.get(level_less(line) if self.levels else line, 0.0)


def official(given: Sequence[Given]) -> Official:
    """Say what answers are worth by VQA's own code.

    Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, `evaluate`.
    """
    lines = [(one_line(answer), other) for answer, other in given]
    if len({answer for answer, _ in lines}) < 2:
        return Official(credit(lines), levels=False)
    return Official(credit([(level_less(line), other) for line, other in lines]), levels=True)


@functools.cache
def _mean(others: tuple[int, ...]) -> float:
    """Average the credit for an answer that so many others gave, for each person left out."""
    return float(mean(min(1.0, count / ENOUGH) for count in others))


def most_common(answers: Sequence[str]) -> tuple[str, ...]:
    """List answers once each, those of most people first."""
    return tuple(answer for answer, _ in Counter(answers).most_common())
