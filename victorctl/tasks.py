"""What a model is measured on: questions, and the rule by which their answers are marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from victorctl.benchmarks import SETS, benchmark
from victorctl.benchmarks.base import Asked, Benchmark, Scorer, text
from victorctl.benchmarks.opening import check_copies, open_benchmark
from victorctl.data.conversations import Conversation, Row, open_data
from victorctl.data.records import Embedded
from victorctl.errors import VictorError
from victorctl.exact import Exact
from victorctl.questions import Question, questions
from victorctl.sections import EvalSection

DATA = "data"
"""Name of the task that is no benchmark."""
LONGEST = 16
"""Tokens of the longest answer to a question of no benchmark."""


@dataclass(frozen=True)
class Task:
    """Questions that are marked by one rule.

    Args:
        name: Of the benchmark, or DATA.
        title: As people read it.
        scorer: The rule.
        asked: What it knows of each question.
        questions: The same, as models are asked.
        longest: Tokens of the longest answer.
        sha256: Identifies the data; "" if they are drawn.
    """

    name: str
    title: str
    scorer: Scorer
    asked: list[Asked]
    questions: list[Question]
    longest: int
    sha256: str


def open_tasks(settings: EvalSection, *, quiet: bool) -> list[Task]:
    """Open everything that is asked.

    Args:
        settings: `benchmarks` or `data`, and how much of them.
        quiet: Do not say what was recognised.

    Raises:
        VictorError: If neither or both are given, or data are not there or damaged. That copies of
            benchmarks are not there is said of all of them, before any is read.
    """
    check_asked(settings)
    if not settings.benchmarks:
        return [_own(settings, quiet=quiet)]
    names = chosen(settings.benchmarks)
    folder = None if settings.data_dir is None else Path(settings.data_dir).expanduser()
    check_copies(names, folder)
    return [_known(name, folder, settings, quiet=quiet) for name in names]


def check_asked(settings: EvalSection) -> None:
    """Refuse an evaluation of nothing, of two kinds, or of benchmarks that there are not.

    Raises:
        VictorError: If it is one of these.
    """
    if settings.benchmarks == ():
        raise VictorError("--benchmarks names none", fix="name some: --benchmarks pope,gqa")
    if settings.data is None and not settings.benchmarks:
        fix = "add --data demo:test, --data FILE, or --benchmarks pope,gqa"
        raise VictorError("eval needs questions", fix=fix)
    if settings.data is not None and settings.benchmarks:
        raise VictorError(
            f"--data {settings.data} --benchmarks {','.join(settings.benchmarks)}: one at a time",
            fix="leave one of the two out; where a recipe sets eval.data, add --set eval.data=null",
        )
    if settings.data_dir is not None and not settings.benchmarks:
        fix = "add --benchmarks pope,gqa, or leave it out"
        raise VictorError(f"--data-dir {settings.data_dir}: is for benchmarks", fix=fix)
    for name in chosen(settings.benchmarks or ()):
        benchmark(name)


def chosen(names: Sequence[str]) -> list[str]:
    """Put the benchmarks in the place of a name for several, each once."""
    return list(dict.fromkeys(one for name in names for one in SETS.get(name, (name,))))


def _own(settings: EvalSection, *, quiet: bool) -> Task:
    rows = open_data(settings.data, rows=settings.limit, split=None, quiet=quiet)
    found = questions(rows, settings.limit)
    asked = [
        Asked(
            id=question.id,
            parts=tuple(question.conversation.messages[-2]["content"]),
            images=question.row.images,
            answers=question.conversation.answers,
            unit=question.pictures,
            type=question.conversation.type,
            known={},
        )
        for question in found
    ]
    longest = settings.max_new_tokens or LONGEST
    return Task(DATA, DATA, Exact(), asked, found, longest, rows.sha256)


def _known(name: str, folder: Path | None, settings: EvalSection, *, quiet: bool) -> Task:
    opened = open_benchmark(name, data_dir=folder, limit=settings.limit, quiet=quiet)
    rule: Benchmark = opened.benchmark
    return Task(
        name,
        rule.title,
        rule,
        opened.asked,
        _questions(opened.asked),
        settings.max_new_tokens or rule.longest,
        opened.sha256,
    )


def _questions(asked: Sequence[Asked]) -> list[Question]:
    """Put questions as models are asked; those about the same stored pictures share a row."""
    said = [_conversation(one) for one in asked]
    groups: dict[object, list[int]] = {}
    for number, one in enumerate(asked):
        stored = one.images and all(isinstance(image, Path | Embedded) for image in one.images)
        groups.setdefault(one.images if stored else number, []).append(number)
    rows: dict[int, Row] = {}
    for numbers in groups.values():
        first = asked[numbers[0]]
        row = Row(first.id, first.images, tuple(said[number] for number in numbers))
        rows |= dict.fromkeys(numbers, row)
    return [Question(one.id, n, rows[n], said[n]) for n, one in enumerate(asked)]


def _conversation(asked: Asked) -> Conversation:
    answer = asked.answers[0] if asked.answers else ""
    turns: tuple[Mapping[str, object], ...] = (
        {"role": "user", "content": [dict(part) for part in asked.parts]},
        {"role": "assistant", "content": [text(answer)]},
    )
    return Conversation(turns, asked.type, asked.answers, asked.id)
