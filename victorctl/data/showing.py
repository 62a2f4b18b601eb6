"""`victorctl data show`: the first rows as a model will see them, and where the loss is."""

from collections.abc import Iterator, Mapping
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from victorctl.data.batches import IGNORED, Encoded, encode
from victorctl.data.checking import Reader, open_reader
from victorctl.data.conversations import open_data
from victorctl.data.formats import MARKER
from victorctl.data.mixtures import parts
from victorctl.data.records import Embedded
from victorctl.data.rows import Conversation, Picture, Row
from victorctl.errors import VictorError
from victorctl.sections import DataSection

OPEN, CLOSE = "«", "»"  # around what the loss is on
TIMES = "\N{MULTIPLICATION SIGN}"


def show(data: str, count: int, *, model: str | None = None) -> dict[str, Any]:
    """Open the first rows.

    Args:
        data: As for `finetune --data`, or `demo:test`.
        count: How many rows.
        model: Folder or Hub id; its chat template and tokens are then shown.

    Returns:
        The keys of `data show --json`.

    Raises:
        VictorError: If there are no such data, no such model, or none of the rows can be used.
    """
    reader = None if model is None else open_reader(model)
    names = parts(DataSection(train=data))
    opened = [open_data(name, rows=count, skip_bad=True) for name in names]
    bad = [problem.problem for rows in opened for problem in rows.problems]
    shown = []
    for row in islice(chain.from_iterable(opened), count):
        try:
            shown.append(_row(row, reader))
        except VictorError as error:
            bad.append(error.problem)
    form = " + ".join(rows.form for rows in opened)
    return {"data": data, "form": form, "rows": shown, "bad": bad}


def table(result: Mapping[str, Any]) -> RenderableType:
    """Show rows one after the other; answers are marked, and coloured where there are colours."""
    lines = [Text(f"{result['data']}: {result['form']}", "bold")]
    for row in result["rows"]:
        shown = ", ".join(f"{one['name']} {one['size']}" for one in row["pictures"])
        lines += [Text(), Text(f"row {row['id']}: {shown or 'no picture'}", "bold")]
        for said in row["conversations"]:
            lines.append(_marked(said["parts"]))
            if "tokens" in said:
                words = "{tokens} tokens, {visual_tokens} visual, {answer_tokens} with a loss"
                lines.append(Text(words.format(**said), "dim"))
    lines += [Text(), *(Text(f"bad: {problem}", "red") for problem in result["bad"])]
    return Group(*lines, Text(), Text(f"{OPEN}marked{CLOSE}: what the loss is on", "dim"))


def _row(row: Row, reader: Reader | None) -> dict[str, Any]:
    files = zip(row.images, row.pictures(), strict=True)
    shown = [{"name": _name(image), "size": f"{one.width}x{one.height}"} for image, one in files]
    if reader is None:
        said = [{"parts": [*_messages(one)]} for one in row.conversations]
    else:
        said = [_tokens(one, reader) for one in encode(row, reader.processor).conversations]
    return {"id": row.id, "pictures": shown, "conversations": said}


def _name(image: Picture) -> str:
    return str(image) if isinstance(image, Path | Embedded) else "drawn"


def _messages(conversation: Conversation) -> Iterator[dict[str, Any]]:
    """Cut a conversation into turns; each role stands before what is said."""
    for place, turn in enumerate(conversation.messages):
        said = [MARKER if part["type"] == "image" else part["text"] for part in turn["content"]]
        yield {"text": ("\n" if place else "") + f"{turn['role']}: ", "loss": False}
        yield {"text": " ".join(said), "loss": turn["role"] == "assistant"}


def _tokens(encoded: Encoded, reader: Reader) -> dict[str, Any]:
    """Write tokens as text again, cut where the loss begins or ends; runs of pictures are short."""
    placeholder = reader.processor.image_token_id
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    marked = ((token, label != IGNORED, token == placeholder) for token, label in pairs)
    runs = []
    for (loss, visual), group in groupby(marked, key=lambda one: one[1:]):
        ids = [token for token, *_ in group]
        text = f"{MARKER}{TIMES}{len(ids)}" if visual else reader.processor.tokenizer.decode(ids)
        runs.append({"text": text, "loss": loss})
    return {
        "tokens": len(encoded.input_ids),
        "visual_tokens": encoded.input_ids.count(placeholder),
        "answer_tokens": sum(label != IGNORED for label in encoded.labels),
        "parts": runs,
    }


def _marked(runs: list[dict[str, Any]]) -> Text:
    pieces = [
        (f"{OPEN}{run['text']}{CLOSE}", "green") if run["loss"] else run["text"] for run in runs
    ]
    return Text.assemble(*pieces)
