"""A look at one picture: what model and base answer, and where the registers look."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl import plots
from victorctl.answering import BASE, MODEL
from victorctl.attention import register_attention
from victorctl.checkpoint import read_victor_config
from victorctl.contestants import Field, enter
from victorctl.data import formats
from victorctl.data.conversations import Conversation, Row
from victorctl.data.rows import open_picture
from victorctl.errors import VictorError
from victorctl.files import write_whole
from victorctl.folders import check_outside, explained
from victorctl.fonts import missing
from victorctl.measures import Pair, pair
from victorctl.outcome import count
from victorctl.overlay import Layer, Said, draw
from victorctl.placing import Places, places
from victorctl.questions import Prompts, prepare, questions
from victorctl.recipe import Recipe, Run
from victorctl.runtime import resolve, say, set_threads
from victorctl.timing import by_turns, medians
from victorctl.units import milliseconds, number, percent

if TYPE_CHECKING:
    from torch import Tensor

SOFTWARE = "victorctl show"
"""What a drawing of ours says, in the file, that it was made by."""
LONGEST = 128  # tokens of an answer
REPEATS = 5  # times that each answer is timed
PANELS = 48  # of a drawing that still shows every layer
ROWS = 16  # registers that the terminal lists


def show(model: Path, picture: Path, question: str, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Ask a model and its base about a picture, and draw what registers attend to.

    Args:
        model: A folder that `convert` or `finetune` wrote.
        picture: A file.
        question: What to ask.
        recipe: `eval.registers` says how many of an elastic model's to use.
        run: Where and on what. `out` is `PICTURE-victor.png` here if not given; `base` is a folder
            or Hub id to compare with, or "none".

    Returns:
        The keys of `show --json`.

    Raises:
        VictorError: If the folder, the picture or the base does not fit, or something else stands
            where the drawing goes.
    """
    out = run.out or Path(f"{picture.stem}-victor.png")
    read_victor_config(model)
    if not question.strip():
        raise VictorError("the question is empty", fix='ask something: -q "What is this?"')
    seen = _open(picture)
    _check_output(out, model, picture, overwrite=run.overwrite)
    set_threads(run.threads)
    resolve(run)
    row = Row(picture.name, (seen,), (Conversation(formats.question(question, "", images=1)),))
    say(f"loading {model}", quiet=run.quiet)
    field = enter(model, recipe, run)
    asked = prepare(questions([row], None), field.greedy.processor, pictures=True)
    say("asking and timing", quiet=run.quiet)
    written = {name: _generate(field, name, asked, LONGEST) for name in field.contestants}
    said = {name: field.greedy.read(tokens)[0] for name, tokens in written.items()}
    lengths = {name: tokens.shape[1] for name, tokens in written.items()}
    seconds = {"first_token": _time(field, asked, 1), "answer": _time(field, asked, LONGEST)}
    weights = register_attention(field.model, asked.for_model(field.model)).numpy()  # [k, r, v]
    found = places(field.model, field.greedy.processor, seen, weights.shape[-1])
    if found is None:
        unknown = "how this model's visual tokens lie in a picture is not known"
        say(f"warning: {unknown}; they are drawn in reading order", quiet=False)
    drawn = _choose(weights)
    layers = [Layer(_title(number, weights), weights[number]) for number in drawn]
    lines = _lines(field, said, lengths, seconds["answer"])
    _warn_of_missing("".join((question, *said.values())))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of which we have warned
        data = plots.png(draw(seen, found, layers, question=question, said=lines), SOFTWARE)
    _write(data, out)
    return {
        "question": question,
        "answers": pair(said[MODEL], said.get(BASE)),
        "tokens": pair(lengths[MODEL], lengths.get(BASE)),
        "seconds": seconds,
        "picture": str(out),
        "registers": weights.shape[1],
        "layers": drawn,
        "attention": [_describe(number, layer, found) for number, layer in enumerate(weights)],
    }


def _check_output(out: Path, model: Path, picture: Path, *, overwrite: bool) -> None:
    """Refuse a place where something would be lost, before anything is loaded."""
    check_outside(out, model)
    if out.suffix.lower() != ".png":
        raise VictorError(f"--out {out}: a PNG is drawn", fix=f"use --out {out.stem}.png")
    if out.exists() and not out.is_file():
        raise VictorError(f"--out {out}: no file stands there", fix="give the name of a file")
    if out.exists() and picture.exists() and out.samefile(picture):
        problem = f"--out {out}: this is the picture that is asked about"
        raise VictorError(problem, fix="choose another --out")
    if out.exists() and not overwrite and not _is_ours(out):
        raise VictorError(
            f"{out}: exists already, and was not drawn by victorctl",
            fix="choose another --out, or add --overwrite",
        )


def _is_ours(file: Path) -> bool:
    try:
        with Image.open(file) as picture:
            return picture.info.get("Software") == SOFTWARE
    except OSError:  # no picture at all
        return False


def _warn_of_missing(text: str) -> None:
    """Say if a text has letters that cannot be drawn."""
    lacking = missing(text)
    if lacking:
        problem = f"no font that was found here can draw {lacking}; the drawing has boxes instead"
        say(f"warning: {problem}; the terminal and --json have the text", quiet=False)


def _write(data: bytes, out: Path) -> None:
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, data)


def _open(picture: Path) -> Image.Image:
    if not picture.is_file():
        what = "a folder" if picture.is_dir() else "no such file"
        raise VictorError(f"{picture}: {what}", fix="give a file that is a picture")
    try:
        return open_picture(picture)
    except formats.BadRow as error:  # whose fix is for data
        raise VictorError(error.problem, fix="give a file that is a picture") from error


def _generate(field: Field, name: str, asked: Prompts, most: int) -> "Tensor":
    """Let one of those who take part answer, from the picture's pixels on [1, new tokens]."""
    who = field.contestants[name]
    return field.greedy.generate(who, asked.for_model(who.model), asked.rows, most=most)


def _time(field: Field, asked: Prompts, most: int) -> Pair:
    """Time so many tokens of everybody's answer, by turns."""
    runs = {name: partial(_generate, field, name, asked, most) for name in field.contestants}
    taken = medians(by_turns(runs, repeats=REPEATS, device=field.model.device))
    return pair(taken[MODEL], taken.get(BASE))


def _choose(weights: np.ndarray) -> list[int]:
    """Choose the layers to draw: all, or the last one where that would be too many panels."""
    layers, registers, _ = weights.shape
    return [*range(layers)] if layers * (1 + registers) <= PANELS else [layers - 1]


def _title(number: int, weights: np.ndarray) -> str:
    last = ", the last that sees the picture" if number == len(weights) - 1 else ""
    return f"Layer {number}{last}"


def _lines(
    field: Field, said: Mapping[str, str], lengths: Mapping[str, int], seconds: Pair
) -> list[Said]:
    names = {MODEL: f"Victor with {field.model.config.victor['registers']} registers"}
    if field.base:
        names[BASE] = "base"
    times = {
        who: f"{milliseconds(seconds[who])} for {count(lengths[who], 'token')}" for who in names
    }
    return [Said(name, said[who], times[who]) for who, name in names.items()]


def _describe(layer: int, weights: np.ndarray, found: Places | None) -> dict[str, Any]:
    """Sum up what registers attend to in a layer."""
    return {
        "layer": layer,
        "mean": _sum_up(weights.mean(axis=0), found),
        "registers": [_sum_up(own, found) for own in weights],
    }


def _sum_up(weights: np.ndarray, found: Places | None) -> dict[str, Any]:
    """Sum up one register's attention.

    Returns:
        `share` of it that is on the picture, on how many `tokens` of it (the exponential of the
        entropy), the most attended `token` in reading order, and its `place` in shares of the
        picture's width and height, if it has one.
    """
    share, most = float(weights.sum()), int(weights.argmax())
    inside = weights[weights > 0] / share
    box = found[most] if found else None
    return {
        "share": share,
        "tokens": float(np.exp(-(inside * np.log(inside)).sum())),
        "token": most,
        "place": box and [(box.left + box.right) / 2, (box.top + box.bottom) / 2],
    }


def table(result: Mapping[str, Any]) -> RenderableType:
    """Sum up for the terminal: the answers, and where registers look in the last layer drawn."""
    answers = _grid("", "first token", "answer", "tokens", "")
    for name, answer in result["answers"].items():
        if answer is not None:
            times = (
                milliseconds(result["seconds"][key][name]) for key in ("first_token", "answer")
            )
            answers.add_row(name, *times, f"{result['tokens'][name]}", Text(answer))
    last = result["attention"][-1]
    looks = _grid(f"layer {last['layer']}", "on the picture", "tokens", "most")
    rows = {f"register {place}": own for place, own in enumerate(last["registers"][:ROWS])}
    for name, own in {"mean": last["mean"], **rows}.items():
        looks.add_row(name, percent(own["share"]), number(own["tokens"]), _place(own))
    return Group(Text(result["question"], "bold"), "", answers, "", looks, "", result["picture"])


def _place(own: Mapping[str, Any]) -> str:
    if own["place"] is None:
        return f"token {own['token']}"
    across, down = own["place"]
    return f"{across:.0%} from left, {down:.0%} from top"


def _grid(*titles: str) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        grid.add_column(title)
    return grid
