"""Answers that several people gave to one question: how VQA and its kin level and count them."""

import functools
import re
import sys
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


class Given(NamedTuple):
    """What several people answered to one question, as small as it can be kept.

    Args:
        answers: Of each.
        people: Their numbers; those whom nothing tells apart have the same one.
    """

    answers: tuple[str, ...]
    people: tuple[int, ...]

    @classmethod
    def of(cls, answers: Iterable[str], notes: Sequence[Hashable]) -> "Given":
        """Keep equal answers once, whatever question they are to.

        Args:
            answers: Of each person.
            notes: What else is known of each, alike where nothing tells people apart.
        """
        first = {note: number for number, note in reversed([*enumerate(notes)])}
        people = _known_people(tuple(first[note] for note in notes))
        return cls(tuple(map(sys.intern, answers)), people)


def credit(said: str, answers: Sequence[str], people: Sequence[int]) -> float:
    """Say what an answer is worth: the mean over people, of whom each is left out once.

    An answer that three of the others gave is right; for each that is missing, a third is lost.

    Args:
        said: The answer, levelled.
        answers: Of people, levelled alike.
        people: Their numbers; equal answers of the same one are left out together.

    Returns:
        From 0 to 1; one that nobody gave is worth 0.

    Source: lmms-eval 0.7.3, tasks/vqav2/utils.py, lines 37-42.
    """
    if said not in answers:
        return 0.0
    pairs = [*zip(answers, people, strict=True)]
    alike = Counter(person for answer, person in pairs if answer == said)
    count = alike.total()
    return _mean(tuple(count - (alike[who] if answer == said else 0) for answer, who in pairs))


def official(said: str, given: Given) -> float:
    """Say what an answer is worth by VQA's own code: where all agree, it levels nothing.

    Args:
        said: The answer, as it was written.
        given: What people answered.

    Source: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, `evaluate`.
    """
    line, lines = one_line(said), [*map(one_line, given.answers)]
    if len({*lines}) > 1:
        line, lines = level_less(line), [*map(level_less, lines)]
    return credit(line, lines, given.people)


@functools.cache
def _known_people(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return numbers that were there before, where they are equal: nearly always 0 to 9."""
    return numbers


@functools.cache
def _mean(others: tuple[int, ...]) -> float:
    """Average the credit for an answer that so many others gave, for each person left out."""
    return float(mean(min(1.0, count / ENOUGH) for count in others))


def most_common(answers: Sequence[str]) -> tuple[str, ...]:
    """List answers once each, those of most people first."""
    return tuple(answer for answer, _ in Counter(answers).most_common())
