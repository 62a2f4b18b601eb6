"""ChartQA: questions about charts, whose numbers need not be read off exactly."""

from collections.abc import Mapping
from typing import Any

from victorctl.benchmarks.base import IMAGE, Asked, Benchmark, Hub, Number, ratio, text
from victorctl.benchmarks.columns import words

POST = "\nAnswer the question with a single word."
OFF = 0.05  # as far as a number may be from the right one, as a share of it
HUMAN = "human_test"


class ChartQA(Benchmark):
    """Ask as lmms-eval's `chartqa`.

    A number is right that is 5 % away; any other answer, and 0, must be the same text but for case.
    A percent sign divides by 100.

    Source: Masry et al. 2022, arXiv 2203.10244, section 5.1; lmms-eval 0.7.3,
    tasks/chartqa/chartqa.yaml and utils.py.
    """

    title = "ChartQA (test)"
    data = Hub("lmms-lab-encoder/ChartQA", None, "test")
    columns = {
        "image": "picture",
        "question": "what is asked",
        "answer": "right answer",
        "type": f"`{HUMAN}` where people wrote the question, else a model did",
    }
    main = "relaxed_accuracy"
    meanings = {
        "relaxed_accuracy": "of all questions; lmms-eval's `relaxed_overall`",
        "relaxed_accuracy_human": "of those that people wrote; `relaxed_human_split`",
        "relaxed_accuracy_augmented": "of those that a model wrote; `relaxed_augmented_split`",
    }

    def ask(self, row: Mapping[str, Any]) -> Asked:
        """See `Benchmark.ask`; the data name neither questions nor pictures."""
        return Asked(
            id="",
            parts=(IMAGE, text(words(row, "question") + POST)),
            images=row["image"],
            answers=(words(row, "answer"),),
            unit=None,
            type=words(row, "type"),
            known={},
        )

    def mark(self, answer: str, asked: Asked) -> dict[str, float]:
        """See `Scorer.mark`."""
        right, human = float(is_near(answer, asked.answers[0])), float(asked.type == HUMAN)
        return {"right": right, "human_right": right * human, "human": human}

    def sum_up(self, sums: Mapping[str, Number]) -> dict[str, Number]:
        """See `Scorer.sum_up`."""
        right, human = sums["right"], sums["human_right"]
        return {
            "relaxed_accuracy": ratio(right, sums["questions"]),
            "relaxed_accuracy_human": ratio(human, sums["human"]),
            "relaxed_accuracy_augmented": ratio(right - human, sums["questions"] - sums["human"]),
        }


def is_near(answer: str, right: str) -> bool:
    """Tell whether an answer is the right text, or a number near the right one.

    Source: lmms-eval 0.7.3, tasks/chartqa/utils.py, lines 25-62.
    """
    own, wanted = _number(answer), _number(right)
    if own is None or not wanted:
        return answer.lower() == right.lower()
    return abs(own - wanted) / abs(wanted) <= OFF


def _number(words: str) -> float | None:
    """Read a number, or a percentage; None if it is neither."""
    try:
        return float(words.rstrip("%")) / 100 if words.endswith("%") else float(words)
    except ValueError:
        return None
