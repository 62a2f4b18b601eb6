"""MMBench-EN dev: multiple choice in twenty abilities, each question asked once."""

from collections.abc import Mapping, Sequence
from typing import Any

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, text
from victorctl.benchmarks.choices import DIRECTLY, check_answer, find_letter
from victorctl.benchmarks.columns import words
from victorctl.benchmarks.kinds import kind_accuracies, tally_kinds

ROUND = 10**6
"""What the number of a question grows by each time its options are rotated."""

FORMS = ("{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).")
FORMS += (":{}", ":{},", ":{}.", ":{})", ":{}).")


class MMBench(Benchmark):
    """Questions with up to four options, each in the order of options that comes first.

    What an answer means is read from its words alone: no language model is asked. Where lmms-eval
    would ask one, its static aggregation looks for a letter in any form, and so does this.
    Its score for the same rows, those below 1,000,000, is this one.

    Source: Liu et al. 2023, arXiv 2307.06281; lmms-eval 0.7.3,
    tasks/mmbench/mmbench_en_dev_static.yaml, en_utils.py, lines 50-106, and mmbench_evals.py, lines
    20-28, 79-127, 206-249 and 275-314.
    """

    title = "MMBench-EN (dev)"
    data = Hub("lmms-lab-encoder/MMBench", "en", "dev")
    columns = {
        "index": "its number, and a million for each rotation of its options",
        "question": "what is asked",
        "hint": 'what is told before it; "nan" where nothing is',
        "A": "option",
        "B": "option",
        "C": 'option; "nan" where there is none',
        "D": 'option; "nan" where there is none',
        "answer": "letter of the right option",
        "image": "picture",
        "category": "one of 20 abilities",
        "L2-category": "one of 6 groups of abilities",
    }
    longest = 1024
    meanings = {"accuracy/...": "of one ability, or of a group of them"}

    def ask(self, row: Mapping[str, Any]) -> Asked | None:
        """See `Benchmark.ask`; rotated options are none of these questions."""
        asked = put(row)
        return None if asked.known["rotated"] else asked

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        return {"right": float(_read(answer, asked.known["options"]) in asked.answers)}

    def tally(
        self, marks: Sequence[Mapping[str, float]], asked: Sequence[Asked]
    ) -> dict[str, float]:
        """See `Scorer.tally`."""
        return tally_kinds(super().tally, marks, asked, abilities)

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        return {**super().sum_up(sums), **kind_accuracies(sums)}


def put(row: Mapping[str, Any]) -> Asked:
    """Put the question of any row, rotated or not; those about the same question are a unit."""
    options = {letter: words(row, letter) for letter in "ABCD" if row[letter] not in (None, "")}
    shown = [f"{letter}. {option}" for letter, option in options.items() if option != "nan"]
    hint = [] if row["hint"] in (None, "", "nan") else [words(row, "hint")]
    before = " ".join([*hint, words(row, "question"), "There are several options:"])
    question = "\n".join([before, *shown, DIRECTLY])
    index, group = int(words(row, "index")), words(row, "L2-category")
    return Asked(
        id=str(index),
        parts=(IMAGE, text(question)),
        images=row["image"],
        answers=(check_answer(row["answer"], options),),
        unit=index % ROUND,
        type=words(row, "category"),
        known={"options": options, "group": group, "rotated": index >= ROUND},
    )


def abilities(asked: Asked) -> tuple[str, str]:
    """Name a question's ability, and the group of it."""
    return asked.type, asked.known["group"]


def _read(answer: str, options: Mapping[str, str]) -> str | None:
    """Find the letter that an answer names, or that of the one option whose words are in it."""
    named = _read_letter(answer)
    if named:
        return named
    inside = [letter for letter, option in options.items() if option.lower() in answer.lower()]
    return inside[0] if len(inside) == 1 else find_letter(answer, list(options))


def _read_letter(answer: str) -> str | None:
    """Find the only letter among the words of an answer, bare, or else in each form in turn.

    In an answer of four or more words a bare A is an article.
    """
    parts = answer.split()
    article = "A" in parts and len(parts) > 3
    for form in FORMS[article:]:
        found = [letter for letter in "ABCDE" if form.format(letter) in parts]
        if len(found) == 1:
            return found[0]
    return None
