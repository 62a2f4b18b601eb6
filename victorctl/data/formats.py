"""Formats of data: files are read into records, and records into chat messages."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from victorctl.errors import VictorError

Message = dict[
    str, Any
]  # {"role": ..., "content": [{"type": "image"}, {"type": "text", "text": ...}]}

MARKER = "<image>"  # where a picture belongs in a text
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


def messages(record: Any, images: int) -> tuple[Message, ...]:
    """Bring one record of any known form into chat messages.

    Args:
        record: Row as its file has it.
        images: How many pictures come with it.

    Raises:
        VictorError: If the form is unknown, the text shows more or fewer pictures, or the last
            turn is no answer.
    """
    key = next((key for key in RECORDS if isinstance(record, dict) and key in record), None)
    if key is None:
        raise VictorError("not a row", fix=f"give it one of the keys {', '.join(RECORDS)}")
    turns = RECORDS[key](record, images)
    if not turns or turns[-1]["role"] != "assistant" or not text_of(turns[-1]):
        raise VictorError("no answer at the end", fix="end each row with an assistant's turn")
    shown = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    if shown != images:
        fix = f"put one {MARKER} into the text for each file under image or images"
        raise VictorError(f"pictures in the text: {shown}, in the row: {images}", fix=fix)
    return turns


def question(text: str, answer: str, *, images: int) -> tuple[Message, ...]:
    """Ask one question about pictures; they come first unless the text says where."""
    asked = _message("user", text)
    if all(part["type"] == "text" for part in asked["content"]):
        asked["content"][:0] = [{"type": "image"}] * images
    return asked, _message("assistant", answer)


def listed(value: Any) -> list[Any]:
    """Make a list of what may be one, one thing, or nothing (None or "")."""
    if isinstance(value, list):
        return value
    return [] if value in (None, "") else [value]


def text_of(message: Message) -> str:
    """Join the texts of a turn."""
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")


# Files: each function yields pairs of a place, for messages, and a record.


def read_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Read a list of rows."""
    text = _read_text(path)
    records = _parse(text, path, 1) if text.strip() else []
    if not isinstance(records, list):
        raise VictorError(f"{path}: holds no list of rows", fix="write it as [{...}, {...}]")
    yield from ((f"{path}[{index}]", record) for index, record in enumerate(records))


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Read one row from each line."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse(line, path, number)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VictorError(f"{path}: not UTF-8: {error}", fix="save it as UTF-8") from error


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fix = "correct that line (a file with one row in each line is called .jsonl)"
        place = f"{path}:{line + error.lineno - 1}"
        raise VictorError(f"{place}: not JSON: {error.msg}", fix=fix) from error


# Records: each function makes the messages of a record that has a certain key.


def _llava(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    return tuple(
        _message(*_turn(turn, "from", "value")) for turn in listed(record["conversations"])
    )


def _chat(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    return tuple(_message(*_turn(turn, "role", "content")) for turn in listed(record["messages"]))


def _single(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    """Read one question; of several answers, training takes the most frequent."""
    answer = record.get("answer")
    if answer is None:
        answer = statistics.mode(listed(record.get("answers")) or [""])
    return question(str(record["question"]), str(answer), images=images)


FILES = {".json": read_json, ".jsonl": read_jsonl}
RECORDS = {"conversations": _llava, "messages": _chat, "question": _single}


def _turn(turn: Any, role: str, content: str) -> tuple[Any, Any]:
    if not isinstance(turn, dict) or role not in turn:
        raise VictorError(f"a turn without {role!r}", fix=f"give each turn {role} and {content}")
    return turn[role], turn.get(content)


def _message(role: Any, content: Any) -> Message:
    if role not in ROLES:
        raise VictorError(f"unknown role {role!r}", fix=f"use one of: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": _parts(content)}


def _parts(content: Any) -> list[dict[str, str]]:
    """Split a text at its markers, or take typed parts one by one."""
    if isinstance(content, list):
        return [part for item in content for part in _typed(item)]
    parts: list[dict[str, str]] = []
    for place, text in enumerate(("" if content is None else str(content)).split(MARKER)):
        parts += [{"type": "image"}] if place else []
        parts += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return parts


def _typed(item: Any) -> list[dict[str, str]]:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind not in ("image", "text"):
        raise VictorError(f"content of type {kind!r}", fix="use parts of type text and image")
    return [{"type": "image"}] if kind == "image" else _parts(item.get("text"))
