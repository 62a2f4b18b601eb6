"""Forms of a row: a record of any of them becomes chat messages."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from victorctl.errors import VictorError

Message = dict[
    str, Any
]  # {"role": ..., "content": [{"type": "image"}, {"type": "text", "text": ...}]}

MARKER = "<image>"  # where a picture belongs in a text
DESCRIBE = "Describe the picture."  # what a caption answers
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
TOOLS = ("observation", "function_call", "function", "tool")  # roles that are not taken
TAGS = (("from", "value"), ("role", "content"))  # what turns call their role and content
PICTURES = ("images", "image", "file_name")  # columns of pictures
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")  # of files of pictures


class BadRow(VictorError):  # noqa: N818  (it reads as what it is)
    """A row that cannot be used.

    Args:
        kind: What it counts as, one of KINDS.
        problem: What is wrong with it.
        fix: As for any error.
        place: Where it stands; "" where only the caller knows.
    """

    def __init__(self, kind: str, problem: str, *, fix: str, place: str = "") -> None:
        super().__init__(f"{place}: {problem}" if place else problem, fix=fix)
        self.kind, self.place, self.reason = kind, place, problem

    def at(self, place: str) -> "BadRow":
        """Say where it stands."""
        return BadRow(self.kind, self.reason, fix=self.fix, place=place)


KINDS = {
    "json": "not JSON",
    "form": "unknown form",
    "role": "unknown role",
    "answer": "empty or missing answer",
    "placeholders": "placeholders that do not match the pictures",
    "missing": "missing picture",
    "broken": "broken picture",
    "template": "does not fit the chat template",
    "long": "longer than the model's context",
}


class Form(NamedTuple):
    """A form of rows.

    Args:
        name: In words.
        read: Makes messages of a record with so many pictures.
    """

    name: str
    read: Callable[[dict[str, Any], int], tuple[Message, ...]]


def messages(record: Any, images: int) -> tuple[Message, ...]:
    """Bring one record of any known form into chat messages.

    Args:
        record: Row as its file has it.
        images: How many pictures come with it.

    Raises:
        BadRow: If the form is unknown, the text shows more or fewer pictures, an answer is empty,
            or the last turn is none.
    """
    turns = form(record).read(record, images)
    if record.get("system") and turns and turns[0]["role"] != "system":
        turns = (_message("system", record["system"]), *turns)
    if not turns or turns[-1]["role"] != "assistant" or not text_of(turns[-1]):
        fix = "end each row with an assistant's turn"
        raise BadRow("answer", "no answer at the end", fix=fix)
    if any(turn["role"] == "assistant" and not text_of(turn) for turn in turns):
        fix = "give every question an answer, or leave it out"
        raise BadRow("answer", "an answer is empty", fix=fix)
    if any(turn["role"] == "user" and not turn["content"] for turn in turns):
        raise BadRow("form", "a question is empty", fix="write what is asked")
    if _shown([turn for turn in turns if turn["role"] == "assistant"]):
        fix = f"show pictures in questions alone; spell {MARKER} otherwise where it is text"
        raise BadRow("placeholders", "a picture in an answer", fix=fix)
    if (shown := _shown(turns)) != images:
        fix = f"put one {MARKER} into the text for each file under image or images"
        problem = f"pictures in the text: {shown}, in the row: {images}"
        raise BadRow("placeholders", problem, fix=fix)
    return turns


def form(record: Any) -> Form:
    """Tell the form of a record by the first of its columns that is known and not empty.

    Raises:
        BadRow: If there is none.
    """
    known = [key for key in FORMS if isinstance(record, dict) and key in record]
    if not known:
        raise BadRow("form", "not a row", fix=f"give it one of the keys {', '.join(FORMS)}")
    return FORMS[next((key for key in known if record[key] is not None), known[0])]


def question(text: str, answer: str, *, images: int) -> tuple[Message, ...]:
    """Ask one question about pictures; they come first unless the text says where."""
    return _in_front([_message("user", text), _message("assistant", answer)], images)


def pictures(record: Any) -> list[Any]:
    """List a record's pictures: names of files, and what is stored in the data itself.

    Raises:
        BadRow: If it has something else in their place.
    """
    if not isinstance(record, dict):
        return []
    found = next((record[key] for key in PICTURES if record.get(key)), None)
    files = [_named(file) for file in listed(found)] or _inside(record)
    for file in files:
        if isinstance(file, str) and file.startswith(("http://", "https://", "data:")):
            fix = "fetch it, and give the name of the file"
            raise BadRow("missing", f"not a file: {file[:80]}", fix=fix)
        if not (isinstance(file, str) or hasattr(file, "read")):
            fix = "name files as text"
            raise BadRow("form", f"not a list of picture files: {found!r:.80}", fix=fix)
    return files


def answers(record: dict[str, Any]) -> tuple[str, ...]:
    """List the right answers that a record names, be they texts or `{"answer": ...}`."""
    given = listed(record.get("answers"))
    given = [one.get("answer", one) if isinstance(one, dict) else one for one in given]
    return tuple(_words(one, "answers") for one in given if one is not None)


def sample(files: dict[str, Any]) -> dict[str, Any]:
    """Join the files of one WebDataset sample, by suffix, into a record; others are as they are.

    Pictures come in the order of their names, and replace those that its JSON names.
    """
    if "__key__" not in files:
        return files
    there = sorted(key for key in files if files[key] is not None)
    named = [key for key in there if key.rpartition(".")[2].lower() in SUFFIXES]
    shown = [picture for key in named for picture in listed(files[key])]
    inside = files.get("json")
    record = {"id": files["__key__"], **(inside if isinstance(inside, dict) else {})}
    if shown:
        record = {key: value for key, value in record.items() if key not in PICTURES}
        record["images"] = shown
    return record | ({"caption": files["txt"]} if files.get("txt") else {})


def listed(value: Any) -> list[Any]:
    """Make a list of what may be one, one thing, or nothing (None or "")."""
    if isinstance(value, list | tuple):
        return [*value]
    return [] if value in (None, "") else [value]


def text_of(message: Message) -> str:
    """Join the texts of a turn."""
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")


# Forms: each function makes the messages of a record that has a certain key.


def _conversations(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    return tuple(_message(*_turn(turn)) for turn in listed(record["conversations"]))


def _chat(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    """Read messages; pictures whose place is not told come first, as TRL puts them."""
    return _in_front([_message(*_turn(turn)) for turn in listed(record["messages"])], images)


def _texts(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    """Read exchanges about the same pictures, one after the other, as one conversation."""
    turns = []
    for said in listed(record["texts"]):
        if not isinstance(said, dict) or "user" not in said:
            raise BadRow("form", "a text without 'user'", fix="give each text user and assistant")
        turns += [_message("user", said["user"]), _message("assistant", said.get("assistant"))]
    return _in_front(turns, images)


def _single(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    """Read one question; of several answers, training takes the most frequent."""
    answer = record.get("answer")
    if answer is None:
        answer = statistics.mode(answers(record) or [""])
    return question(_words(record["question"], "question"), _words(answer, "answer"), images=images)


def _words(value: Any, name: str) -> str:
    """Take a text, or a number as one."""
    if not isinstance(value, str | int | float) or value != value:
        fix = "write a text; several right answers belong under answers"
        raise BadRow("form", f"{name} is no text: {value!r:.80}", fix=fix)
    return str(value)


def _caption(record: dict[str, Any], images: int) -> tuple[Message, ...]:
    if not images:
        fix = f"give it pictures, or one of the keys {', '.join(FORMS)}"
        raise BadRow("form", "not a row", fix=fix)
    words = next(record[key] for key in ("caption", "text") if record.get(key) is not None)
    return question(DESCRIBE, _words(words, "caption"), images=images)


FORMS = {
    "conversations": Form("conversations, as LLaVA and ShareGPT have them", _conversations),
    "messages": Form("messages", _chat),
    "texts": Form("texts, as the_cauldron and FineVision have them", _texts),
    "question": Form("questions with answers", _single),
    "caption": Form("captions", _caption),
    "text": Form("captions", _caption),
}


def _named(file: Any) -> Any:
    """Take the name out of `{"path": ...}`, as datasets write a picture that is a file."""
    return file["path"] if isinstance(file, dict) and isinstance(file.get("path"), str) else file


def _inside(record: dict[str, Any]) -> list[Any]:
    """List pictures that are named inside the turns."""
    turns = listed(record.get("messages")) + listed(record.get("conversations"))
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    given = [_source(part) for part in parts if isinstance(part, dict)]
    return [_named(file) for file in given if file is not None]


def _source(part: dict[str, Any]) -> Any:
    """Find what a typed part shows; None where it only marks a place."""
    if part.get("type") == "image":
        return next((part[key] for key in ("image", "path", "url") if part.get(key)), None)
    shown = part.get("image_url") if part.get("type") == "image_url" else None
    url = shown.get("url") if isinstance(shown, dict) else shown
    return url.removeprefix("file://") if isinstance(url, str) else url


def _shown(turns: tuple[Message, ...] | list[Message]) -> int:
    return sum(part["type"] == "image" for turn in turns for part in turn["content"])


def _in_front(turns: list[Message], images: int) -> tuple[Message, ...]:
    """Put pictures before the first question, unless the turns say where they belong."""
    asked = next((turn for turn in turns if turn["role"] == "user"), None)
    if asked and not _shown(turns):
        asked["content"][:0] = [{"type": "image"}] * images
    return tuple(turns)


def _turn(turn: Any) -> tuple[Any, Any]:
    for role, content in TAGS:
        if isinstance(turn, dict) and turn.get(role) is not None:
            return turn[role], turn.get(content)
    fix = "give each turn from and value, or role and content"
    raise BadRow("role", "a turn without 'from' or 'role'", fix=fix)


def _message(role: Any, content: Any) -> Message:
    if not isinstance(role, str):
        raise BadRow("role", f"a role that is no text: {role!r:.80}", fix="name it as text")
    if role in TOOLS:
        fix = "leave rows with calls of tools out"
        raise BadRow("role", f"role {role!r} is a tool's, and none is taken", fix=fix)
    if role not in ROLES:
        raise BadRow("role", f"unknown role {role!r}", fix=f"use one of: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": _parts(content)}


def _parts(content: Any) -> list[dict[str, str]]:
    """Split a text at its markers, or take typed parts one by one."""
    if isinstance(content, list):
        return [part for item in content for part in _typed(item)]
    whole = "" if content is None else _words(content, "content")
    if not whole.isascii() and any("\ud800" <= sign <= "\udfff" for sign in whole):
        raise BadRow("form", "half of a sign (a lone surrogate) in a text", fix="mend the text")
    parts: list[dict[str, str]] = []
    for place, text in enumerate(whole.split(MARKER)):
        parts += [{"type": "image"}] if place else []
        parts += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return parts


def _typed(item: Any) -> list[dict[str, str]]:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind not in ("image", "image_url", "text"):
        fix = "use parts of type text and image"
        raise BadRow("form", f"content of type {kind!r}", fix=fix)
    return _parts(item.get("text")) if kind == "text" else [{"type": "image"}]
