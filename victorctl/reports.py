"""Reports that were written before: found, read, with the predictions beside them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from victorctl.errors import VictorError
from victorctl.exact import is_right
from victorctl.report import SCHEMA
from victorctl.sources import read_json

REPORT, PREDICTIONS = "report.json", "predictions.jsonl"
DATA = "data"
"""What questions of no benchmark are called."""


class Prediction(NamedTuple):
    """One question, and how it was answered.

    Args:
        task: Benchmark that it belongs to, or DATA.
        key: What makes it this question and no other: equal in reports that asked the same.
        unit: Equal for questions that are drawn together; None where the file does not say.
        texts: Answers, by who gave them.
        right: How right they are, from 0 to 1; empty where nothing says so.
    """

    task: str
    key: tuple[Any, ...]
    unit: int | None
    texts: Mapping[str, str]
    right: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """A report as it was found.

    Args:
        file: Where.
        content: Its numbers; of those that a report may lack, any may be missing.
        predictions: Every question with its answers; None where they are not beside it.
    """

    file: Path
    content: Mapping[str, Any]
    predictions: list[Prediction] | None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was measured, how and with what."""
        return self.content["settings"]


def open_report(place: Path) -> Report:
    """Read a report.

    Args:
        place: `report.json`, a folder that holds it, or a model's folder with `eval/` in it.

    Raises:
        VictorError: If there is none, or it is damaged or of another version.
    """
    file = _find(place)
    content = read_json(file)
    schema = content.get("schema")
    kind, _, version = str(schema).rpartition("/")
    if kind != SCHEMA.rpartition("/")[0] or not isinstance(content.get("settings"), dict):
        fix = f"give a {REPORT} that victorctl eval wrote, or its folder"
        raise VictorError(f"{file}: no report of victorctl eval", fix=fix)
    if schema != SCHEMA:
        raise VictorError(
            f"{file}: a report of version {version}, and this victorctl reads {SCHEMA}",
            fix="use the release that wrote it, or evaluate the model again",
        )
    beside = file.with_name(PREDICTIONS)
    return Report(file, content, list(_predictions(beside)) if beside.is_file() else None)


def _find(place: Path) -> Path:
    """Find the report that a path stands for."""
    found = [place, place / REPORT, place / "eval" / REPORT]
    file = next((file for file in found if file.is_file()), None)
    if file is None and place.is_dir():
        raise VictorError(
            f"{place}: holds neither {REPORT} nor eval/{REPORT}",
            fix=f"evaluate the model: victorctl eval {place} --data DATA",
        )
    if file is None:
        raise VictorError(f"{place}: no such file or folder", fix=f"give a {REPORT}, or its folder")
    return file


def _predictions(file: Path) -> Iterator[Prediction]:
    """Read the predictions beside a report; questions asked several times are told apart."""
    seen: Counter[tuple[Any, ...]] = Counter()
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")  # texts hold other ends of lines
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text.decode())
            answers = tuple(line["answers"])
            key = (line.get("benchmark", DATA), line["id"], line["question"], answers)
            seen[key] += 1
            yield _prediction(line, (*key, seen[key]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise VictorError(
                f"{file}:{number}: no prediction of victorctl eval",
                fix=f"remove {PREDICTIONS} to compare the reports alone, or evaluate again",
            ) from error


def _prediction(line: Mapping[str, Any], key: tuple[Any, ...]) -> Prediction:
    known = {"benchmark", "id", "unit", "type", "question", "answers"}
    texts = {who: text for who, text in line.items() if who not in known and isinstance(text, str)}
    right = line.get("right")
    if right is None and "benchmark" not in line:  # before marks were kept
        right = {who: float(is_right(text, line["answers"])) for who, text in texts.items()}
    return Prediction(key[0], key, line.get("unit"), texts, _marks({} if right is None else right))


def _marks(right: Mapping[str, Any]) -> dict[str, float]:
    """Read how right answers are; what is no mapping to numbers is an error."""
    return {who: float(mark) for who, mark in right.items()}
