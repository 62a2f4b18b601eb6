"""The eval stage: quality and cost of a model beside its base, on the same questions."""

import json
import random
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from victorctl import checkpoint, cost, lineage, measures, report
from victorctl.answering import Answers, ask
from victorctl.contestants import BASE, MODEL, Field, enter
from victorctl.data.conversations import open_data
from victorctl.errors import VictorError
from victorctl.folders import check_output, writing
from victorctl.measures import Load, Marks, Pair, pair
from victorctl.questions import Question, prepare, questions
from victorctl.recipe import Recipe, Run
from victorctl.runtime import resolve, say, seed_everything, set_threads, versions
from victorctl.timing import SPEEDS, decode_rate, speed

SEVERAL = 16  # questions answered at once where speed is measured


def evaluate(model: Path, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Ask a model and its base the same questions, and report what they answer and what it costs.

    Args:
        model: A folder that `convert` or `finetune` wrote.
        recipe: Section `eval`, and the seed.
        run: Where and on what. `out` is `MODEL/eval` if not given; `base` is a folder or Hub id to
            compare with, or "none".

    Returns:
        The keys of `eval --json`, and `settings`.

    Raises:
        VictorError: If the data, the folder or the base do not fit.
    """
    started = time.perf_counter()
    out = _output(model, recipe, run)
    set_threads(run.threads)
    resolve(run)
    seed_everything(recipe.seed)
    rows = open_data(recipe.eval.data, rows=recipe.eval.limit, split=None, quiet=run.quiet)
    asked = questions(rows, recipe.eval.limit)
    if recipe.eval.data == "demo":
        say("warning: demo is what models are trained on; --data demo:test is not", quiet=False)
    say(f"hashing and loading {model}", quiet=run.quiet)
    hashes = checkpoint.hash_base(model)
    field = enter(model, recipe, run, hashes)
    with _fitting(recipe.eval.batch_size):
        answers = ask(asked, field.contestants, field.greedy, recipe.eval, quiet=run.quiet)
    accepted = [question.conversation.answers for question in asked]
    marks = measures.mark(accepted, answers.texts[MODEL], answers.texts.get(BASE))
    quality = measures.quality(
        marks,
        types=[question.conversation.type for question in asked],
        pictures=[question.pictures for question in asked],
        seed=recipe.seed,
    )
    several = min(SEVERAL, recipe.eval.batch_size)
    timed = [question for question in asked if question.row.images][:several] or asked[:several]
    with _fitting(recipe.eval.batch_size):
        speeds = _speeds(field, timed, recipe.eval.repeats, quiet=run.quiet)
    say("writing the report", quiet=run.quiet)
    result = {
        **quality,
        **_costs(field, answers),
        "omissions": list(cost.shape_of(field.model.config).omissions),
        **speeds,
        "baselines": {
            name: _baseline(field, name, answers, accepted, quality["accuracy"][BASE])
            for name in field.ways
        },
        "report": str(out / "report.html"),
        "weights_sha256": lineage.weights_sha256(model, hashes),
        "settings": _settings(model, field, recipe)
        | {
            "base_intact": lineage.base_intact(model, hashes),
            "speed_batch_size": len(timed),
            "command": _command(model, field, recipe, run),
        },
        "seconds": time.perf_counter() - started,
    }
    shown = _differences(asked, answers, marks, recipe)
    with writing(out, overwrite=True) as folder:
        _write_predictions(asked, answers, folder / "predictions.jsonl")
        report.write(result, shown, folder)
    return result


def _output(model: Path, recipe: Recipe, run: Run) -> Path:
    """Check what can be checked before anything is loaded; an earlier report may be replaced."""
    if recipe.eval.data is None:
        raise VictorError("eval needs questions", fix="add --data demo:test, or --data FILE")
    checkpoint.read_victor_config(model)
    out = run.out or model / "eval"
    earlier = (out / "report.json").is_file() and not (out / "config.json").exists()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not earlier):
        raise VictorError(f"{out}: holds something else than a report", fix="choose another --out")
    check_output(out, overwrite=True)
    return out


@contextmanager
def _fitting(batch_size: int) -> Iterator[None]:
    """Let a full GPU be an error that says how to need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise VictorError(
            f"questions answered at once, {batch_size}, do not fit into the GPU's memory",
            fix=f"add --batch-size {batch_size // 2}" if batch_size > 1 else "use another GPU",
        ) from error


def _costs(field: Field, answers: Answers) -> dict[str, Pair]:
    """Count what a question costs on average; a question without pictures costs both the same."""
    shape, victor = cost.shape_of(field.model.config), field.model.config.victor
    other = cost.shape_of(field.base.model.config) if field.base else shape
    registers = [victor["registers"] * images for _, _, images in answers.sizes]
    loads = [
        Load(visual + more, more, text)
        for (visual, text, _), more in zip(answers.sizes, registers, strict=True)
    ]
    ours = measures.spend(shape, victor["drop_layer"], loads)
    ours["prefill_flops"] += measures.adapter_flops(shape, victor, fmean(registers))
    loads = [Load(visual, visual, text) for visual, text, _ in answers.sizes]
    theirs = measures.spend(other, other.layers, loads)
    images = fmean(size.images for size in answers.sizes)
    for spent, sizes in ((ours, shape), (theirs, other)):
        if sizes.tower:
            spent["vision_flops"] = images * cost.vision_flops(sizes)
    return {key: pair(ours[key], theirs.get(key) if field.base else None) for key in ours}


def _speeds(
    field: Field, asked: Sequence[Question], repeats: int, *, quiet: bool
) -> dict[str, Any]:
    """Time model and base by turns; nothing where it is repeated no times."""
    if repeats == 0:
        return untimed()
    timed = {name: field.contestants[name] for name in (MODEL, BASE) if name in field.contestants}
    several = prepare(asked, field.greedy.processor, pictures=True)
    one = prepare(asked[:1], field.greedy.processor, pictures=True)
    seconds = speed(
        timed, one=one, several=several, greedy=field.greedy, repeats=repeats, quiet=quiet
    )
    rates = {
        name: decode_rate({key: of[name] for key, of in seconds.items()}, len(asked))
        for name in timed
    }
    first = seconds.pop("first_token")
    return {
        "time_to_first_token": pair(first[MODEL], first.get(BASE)),
        "decode_tokens_per_second": pair(rates[MODEL], rates.get(BASE)),
        "speedup": {
            key: of[BASE] / of[MODEL] if BASE in of else None for key, of in seconds.items()
        },
        "batch_seconds": {key: pair(of[MODEL], of.get(BASE)) for key, of in seconds.items()},
    }


def untimed() -> dict[str, Any]:
    """Leave every speed open."""
    nothing = pair(None, None)
    return {
        "time_to_first_token": nothing,
        "decode_tokens_per_second": nothing,
        "speedup": dict.fromkeys(SPEEDS),
        "batch_seconds": dict.fromkeys(SPEEDS, nothing),
    }


def _baseline(
    field: Field, name: str, answers: Answers, accepted: Sequence[Sequence[str]], base: float
) -> dict[str, Any]:
    """Sum up one of the simple ways."""
    way, shape = field.ways[name], cost.shape_of(field.model.config)
    loads = [
        Load(visual, way.survivors(visual, images), text) if way.pictures else Load(0, 0, text)
        for visual, text, images in answers.sizes
    ]
    spent = measures.spend(shape, field.model.config.victor["drop_layer"], loads)
    accuracy = fmean(map(measures.is_right, answers.texts[name], accepted))
    return {
        "accuracy": accuracy,
        "kept": measures.share(accuracy, base),
        "mean_visual_tokens": spent["mean_visual_tokens"],
    }


def _settings(model: Path, field: Field, recipe: Recipe) -> dict[str, Any]:
    """Say what was measured, how and with what; of paths only the last part."""
    victor, device = field.model.config.victor, field.model.device
    trained = [
        stage["settings"].get("train", {}).get("rung")
        for stage in lineage.read_lineage(model)["stages"]
        if stage["command"] == "finetune"
    ]
    asked = recipe.eval.model_dump(exclude={"registers"})  # of which the model knows the number
    asked["data"] = _without_folder(recipe.eval.data)
    return {
        "model": model.resolve().name,
        "base": field.base.name if field.base else None,
        "train": trained[-1] if trained else None,
        **{key: victor[key] for key in ("registers", "drop_layer", "positions")},
        **asked,
        "seed": recipe.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": str(field.model.dtype).removeprefix("torch."),
        "attention": field.model.config.get_text_config()._attn_implementation,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _command(model: Path, field: Field, recipe: Recipe, run: Run) -> str:
    """Write the command that repeats this, with everything that is not at its default."""
    words = ["victorctl", "eval", model.resolve().name, "--data", _without_folder(recipe.eval.data)]
    plain = type(recipe.eval)().model_dump()
    for key, value in recipe.eval.model_dump(exclude={"data"}).items():
        if value != plain[key]:
            words += ["--set", f"eval.{key}={json.dumps(value)}"]
    words += ["--seed", str(recipe.seed)]
    if run.base:
        words += ["--base", field.base.name if field.base else run.base]
    for name in ("device", "dtype", "attn", "threads"):
        if getattr(run, name) != getattr(Run, name):
            words += [f"--{name}", str(getattr(run, name))]
    return shlex.join(words)


def _without_folder(spec: str) -> str:
    return Path(spec).name if Path(spec).exists() else spec


def _write_predictions(asked: Sequence[Question], answers: Answers, file: Path) -> None:
    """Write one line for each question, in the order of the data."""
    with file.open("w", encoding="utf-8") as out:
        for question in asked:
            line = {
                "id": question.id,
                "type": question.conversation.type,
                "question": question.conversation.question,
                "answers": question.conversation.answers,
                **{name: texts[question.number] for name, texts in answers.texts.items()},
            }
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _differences(
    asked: Sequence[Question], answers: Answers, marks: Marks, recipe: Recipe
) -> list[dict[str, Any]]:
    """Draw questions with pictures to which model and base answer differently, to be shown."""
    if marks.same is None:
        return []
    differing = [
        question for question in asked if question.row.images and not marks.same[question.number]
    ]
    count = min(recipe.eval.differences, len(differing))
    drawn = random.Random(recipe.seed).sample(differing, count)
    return [
        {
            "picture": side_by_side(question.row.pictures()),
            "question": question.conversation.question,
            "answer": " / ".join(question.conversation.answers),
            "type": question.conversation.type,
            "model": answers.texts[MODEL][question.number],
            "base": answers.texts[BASE][question.number],
            "model_right": marks.model[question.number],
            "base_right": marks.base[question.number],
        }
        for question in sorted(drawn, key=lambda question: question.number)
    ]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures beside each other, from left to right."""
    width = sum(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole
