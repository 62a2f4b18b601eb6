"""The generated parts of README and docs/: read from the code, and from stored measurements."""

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from types import NoneType
from typing import Any, get_args

from typer.models import ArgumentInfo

from scripts.measure import name_of
from tests import estimate_pages
from victorctl import cli, families, recipes
from victorctl.groups import GROUPS
from victorctl.units import flops, milliseconds, percent, size, times

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
RUNGS = ("victor", "lora", "registers")  # recipes of the demo that docs/results/ has numbers of
BEGIN = "<!-- generated: change the code, then run pytest --update-docs -->"
END = "<!-- end of what is generated -->"
VALUES = {int: "N", str: "TEXT", Path: "PATH", list[str]: "TEXT"}


def blocks() -> dict[Path, str]:
    """Map each page to the part of it that is generated."""
    groups = {name: {name: do} for name, do in commands(cli.app).items()}
    for group, app in GROUPS.items():
        groups[group] = {f"{group} {name}": do for name, do in commands(app).items()}
    pages = {
        DOCS / "commands" / f"{name}.md": "\n\n".join(command(*item) for item in group.items())
        for name, group in groups.items()
    }
    pages[DOCS / "commands" / "families.md"] += "\n\n" + join(kinds(), backbones())
    texts = {name: do.__doc__ for name, do in commands(cli.app).items()}
    texts |= {group: app.info.help for group, app in GROUPS.items()}
    about = [
        (f"[{name}](commands/{name}.md)", text.splitlines()[0]) for name, text in texts.items()
    ]
    pages[DOCS / "cli.md"] = table(("command", "what it does"), about)
    pages[DOCS / "recipes.md"] = table(
        ("key", "type", "default", "meaning"),
        (
            (f"`{row['key']}`", code(row["type"]), default_of(row["default"]), row["meaning"])
            for row in recipes.describe()
        ),
    )
    measured = {name: stored(f"demo-{name}") for name in RUNGS}
    shown = join(*summary(measured), *studies("demo"), typed(measured))
    pages[README] = in_short(measured["victor"])
    if file_of("prefill").exists():
        shown = join(shown, prefills(stored("prefill")))
    pages[DOCS / "results.md"] = join(shown, converting(stored("converting")))
    pages[DOCS / "estimate.md"] = estimate_pages.block(table, file_of("estimate"))
    if file_of("smol-victor").exists():
        real = {"victor": stored("smol-victor")}
        base = stored("smol-base")
        read = foretold(base["untouched_perplexity"], real["victor"]["perplexity"])
        pages[DOCS / "smol.md"] = join(
            grown(base),
            *summary(real),
            kinds_of_questions(real["victor"]),
            read,
            *studies("smol"),
            typed({"base": base, **real}),
        )
    return pages


def join(*parts: str) -> str:
    return "\n\n".join(parts)


def file_of(name: str) -> Path:
    return DOCS / "results" / f"{name}.json"


def stored(name: str) -> dict[str, Any]:
    """Read what `scripts/measure.py` kept of a recipe, or of a study."""
    return json.loads(file_of(name).read_text(encoding="utf-8"))


def studies(model: str) -> Iterator[str]:
    """Show what was run of a model's studies."""
    if file_of(f"{model}-positions").exists():
        yield starts(stored(f"{model}-positions")["runs"])
    if file_of(f"{model}-registers-study").exists():
        yield alone(stored(f"{model}-registers-study")["runs"])
    if file_of(f"{model}-elastic").exists():
        yield elastic(stored(f"{model}-elastic")["runs"])


def summary(measured: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Show what a model's recipes keep, beside what else could be done, and what it costs."""
    return ladder(measured), rivals(measured["victor"]), costs(measured["victor"])


def grown(base: dict[str, Any]) -> str:
    """Show what the base that is to be converted can do, and what it took to teach it."""
    seen = base["measured"]["accuracy"]["with the picture"]
    blind = base["measured"]["accuracy"]["without"]
    alone = base["projector_alone"]["measured"]["accuracy"]["with the picture"]
    names = sorted(set(seen) - {"all"})
    rows = [
        (name, percent(seen[name]), percent(blind[name]), percent(alone[name]))
        for name in (*names, "all")
    ]
    minutes = sum(phase["minutes"] for phase in base["training"])
    head = ("questions", f"base, {minutes} minutes", "without the picture")
    head += (f"projector alone, {base['projector_alone']['minutes']} minutes",)
    return table(head, rows)


def kinds_of_questions(measured: dict[str, Any]) -> str:
    """Show of each kind of question how many base and model answer."""
    rows = [
        (name, str(found["questions"]), percent(found["base"]), percent(found["model"]))
        for name, found in sorted(measured["eval"]["by_type"].items())
    ]
    return table(("kind of question", "asked", "base", "Victor"), rows)


def foretold(untouched: float, perplexity: dict[str, float]) -> str:
    """Show how well a page of English is foretold on the way from SmolLM2 to a Victor model."""
    steps = {
        "SmolLM2": untouched,
        "base": perplexity["base"],
        "Victor (`register-lora`)": perplexity["model"],
    }
    rows = [(name, f"{value:.6g}") for name, value in steps.items()]
    return table(("a page of English", "perplexity"), rows)


def in_short(measured: dict[str, Any]) -> str:
    found = measured["eval"]
    tokens, right = found["mean_visual_tokens"], found["accuracy"]
    others = max(found["baselines"].values(), key=lambda other: other["accuracy"])
    return (
        f"On the demo, {found['settings']['registers']} registers keep "
        f"**{percent(found['kept'])}** of the base's accuracy ({percent(right['base'])} to "
        f"{percent(right['model'])} on {found['questions']:,} questions; 95 % interval of what is "
        f"kept {interval(found)}) at {tokens['model']:g} instead of {tokens['base']:g} visual "
        f"tokens per layer, the base's weights untouched. The best of the simple alternatives at "
        f"the same layer and count keeps {percent(others['kept'])}."
    )


def interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * low:.1f}\u2013{100 * high:.1f}"


def ladder(measured: dict[str, dict[str, Any]]) -> str:
    head = ("rung", "parameters", "base intact", "right answers", "kept (95 % interval)")
    head += ("agreement", "steps", "minutes")
    rows = [
        (
            f"`{one['finetune']['train']}`",
            f"{one['finetune']['trainable_parameters']:,}",
            "yes" if one["finetune"]["base_intact"] else "no",
            percent(one["eval"]["accuracy"]["model"]),
            f"{percent(one['eval']['kept'])} ({interval(one['eval'])})",
            percent(one["eval"]["agreement"]),
            f"{one['finetune']['steps']:,}",
            f"{one['finetune']['seconds'] / 60:.0f}",
        )
        for one in measured.values()
    ]
    base = measured["victor"]["eval"]["accuracy"]["base"]
    rows.append(("unconverted", "", "", percent(base), "100.0 %", "", "", ""))
    return table(head, rows)


def rivals(measured: dict[str, Any]) -> str:
    found = measured["eval"]
    ours = {"accuracy": found["accuracy"]["model"], "kept": found["kept"]}
    ours["mean_visual_tokens"] = found["mean_visual_tokens"]["model"]
    everyone = {"Victor (`register-lora`)": ours, **found["baselines"]}
    rows = [
        (name, f"{one['mean_visual_tokens']:g}", percent(one["accuracy"]), percent(one["kept"]))
        for name, one in everyone.items()
    ]
    return table(("at the same layer and count", "tokens per layer", "right answers", "kept"), rows)


def costs(measured: dict[str, Any]) -> str:
    found = measured["eval"]
    several = found["settings"]["speed_batch_size"]
    shown = {
        "visual tokens per layer": ("mean_visual_tokens", lambda value: f"{value:g}"),
        "FLOPs of the prompt, language model": ("prefill_flops", flops),
        "FLOPs of the vision tower and projector": ("vision_flops", flops),
        "cache": ("cache_bytes", size),
        "time to first token, one question": ("time_to_first_token", milliseconds),
        f"tokens a second, decoding {several} at once": (
            "decode_tokens_per_second",
            lambda value: f"{value:.0f}",
        ),
    }
    rows = [
        (name, show(found[key]["base"]), show(found[key]["model"]))
        for name, (key, show) in shown.items()
    ]
    faster = ", ".join(f"{key} {times(value)}" for key, value in found["speedup"].items())
    how = found["settings"]
    return (
        f"{table(('cost', 'base', 'Victor'), rows)}\n\nTimes as fast, {how['speed_batch_size']} "
        f"questions at once: {faster}. Device {how['device']}, {how['dtype']}, threads: "
        f"{how['threads']}; base and model in alternation."
    )


def prefills(found: dict[str, Any]) -> str:
    """Show how much of the FLOPs that are saved in the prefill are saved in time."""
    rows = [
        (
            row["dtype"],
            str(row["batch_size"]),
            *(f"{1000 * row['seconds'][who]:,.0f} ms" for who in ("native", "victor")),
            times(row["speedup"]),
            f"{row['share_of_bound']:.2f}",
            f"{row['rate_of_few_rows']:.2f}",
        )
        for row in found["rows"]
    ]
    head = (
        *("number format", "prompts at once", "native", "Victor", "times as fast", "of the bound"),
        "rate of few rows",
    )
    bound = found["flops"]["base"] / found["flops"]["victor"]
    return (
        f"Prefill of {found['visual_tokens']} visual and {found['text_tokens']} other tokens, "
        f"{found['registers']} registers, visual tokens leave at layer {found['drop_layer']} of "
        f"{found['layers']}, {found['width']} wide, {found['threads']} CPU threads: "
        f"{times(bound)} fewer FLOPs is the bound.\n\n{table(head, rows)}"
    )


def converting(found: dict[str, Any]) -> str:
    """Tell what converting a large checkpoint costs."""
    return (
        f"Converting {size(found['bytes'])} of weights in shards, no model built: "
        f"{found['convert_seconds']:.0f} s, {found['ratio']:.2f} times what copying the files and "
        f"hashing both takes ({found['copy_and_hash_seconds']:.0f} s), and "
        f"{size(found['memory_above_imports'])} of memory above the imports "
        f"(`scripts/speed/converting.py`)."
    )


def starts(runs: list[dict[str, Any]]) -> str:
    """Compare where registers stand and what they are drawn like, seed by seed."""
    kept: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs:
        how = (run["convert"]["positions"], run["convert"]["init"])
        kept.setdefault(how, {})[run["changed"]["seed"]] = run["eval"]["kept"]
    seeds = sorted({seed for by_seed in kept.values() for seed in by_seed})
    rows = [
        (
            *(f"`--positions {positions}`", f"`--init {init}`"),
            *(percent(by_seed[seed]) if seed in by_seed else "" for seed in seeds),
            percent(fmean(by_seed.values())) if len(by_seed) == len(seeds) else "",
        )
        for (positions, init), by_seed in kept.items()
    ]
    head = ("registers stand", "and begin like", *(f"kept, seed {seed}" for seed in seeds), "mean")
    steps, questions = runs[0]["finetune"]["steps"], runs[0]["eval"]["questions"]
    rung = runs[0]["finetune"]["train"]
    return f"After {steps} steps of `{rung}`, on {questions:,} questions:\n\n{table(head, rows)}"


def elastic(runs: list[dict[str, Any]]) -> str:
    """Compare one training for any number of registers with one for each."""
    ways = ("elastic", "cut", "alone")
    kept: dict[int, dict[str, str]] = {}
    for run in runs:
        changed, found = run["changed"], f"{percent(run['eval']['kept'])} ({interval(run['eval'])})"
        count = changed.get("eval.registers", changed["victor.registers"])
        way = "elastic" if changed.get("train.elastic") else "cut"
        way = "alone" if "eval.registers" not in changed else way
        kept.setdefault(count, {})[way] = found
        if way == "cut" and count == changed["victor.registers"]:
            kept[count]["alone"] = found
    rows = [(str(count), *(found.get(way, "") for way in ways)) for count, found in kept.items()]
    steps = {bool(run["changed"].get("train.elastic")): run["finetune"]["steps"] for run in runs}
    head = (
        "registers in use",
        f"elastic: one training, {steps[True]:,} steps",
        f"the first of 16, {steps[False]:,} steps",
        f"trained for that many alone, {steps[False]:,} steps",
    )
    questions = runs[0]["eval"]["questions"]
    return (
        f"Kept (95 % interval) by `register-lora` on {questions:,} questions:\n\n"
        f"{table(head, rows)}"
    )


def alone(runs: list[dict[str, Any]]) -> str:
    """Show what registers alone keep, changed in one way after another."""
    rows = [
        (
            name_of(run["changed"]),
            f"{run['eval']['mean_visual_tokens']['model']:g}",
            f"{run['finetune']['trainable_parameters']:,}",
            f"{run['finetune']['steps']:,}",
            percent(run["eval"]["accuracy"]["model"]),
            f"{percent(run['eval']['kept'])} ({interval(run['eval'])})",
            f"{run['finetune']['seconds'] / 60:.0f}",
        )
        for run in runs
    ]
    head = ("registers alone", "tokens per layer", "parameters", "steps", "right answers")
    head += ("kept (95 % interval)", "minutes")
    picture = "![Accuracy kept against mean visual tokens per layer, registers alone]"
    picture += "(images/registers.png)"
    opening = f"One change at a time, on {runs[0]['eval']['questions']:,} questions:"
    return f"{opening}\n\n{table(head, rows)}\n\n{picture}"


def kinds() -> str:
    known = families.describe()
    rows = [(code(row["family"]), row["becomes"], row["remarks"]) for row in known["families"]]
    rows += [(code(row["refused"]), "refused", row["remarks"]) for row in known["refused"]]
    return table(("family", "becomes", "remarks"), rows)


def backbones() -> str:
    rows = families.describe()["text_models"]
    marked = [(code(row["text_model"]), row["verdict"], row["remarks"]) for row in rows]
    return table(("text model", "verdict", "remarks"), marked)


def typed(measured: dict[str, dict[str, Any]]) -> str:
    lines = "\n".join("\n".join(one["commands"]) for one in measured.values())
    return f"```shell\n{lines}\n```"


def refresh(text: str, title: str, block: str) -> str:
    """Put a block in its place in a page; a page without one gets it under its title."""
    if BEGIN not in text:
        text = f"# {title}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.partition(END)[2]}"


def commands(app: cli.typer.Typer) -> dict[str, Callable]:
    return {info.name or info.callback.__name__: info.callback for info in app.registered_commands}


def command(name: str, do: Callable) -> str:
    about, _, example = inspect.getdoc(do).splitlines()
    example = example.removeprefix("Example: ")
    options = table(("`victorctl " + name + "`", "meaning"), parameters(do))
    return f"{about}\n\n```shell\n{example}\n```\n\n{options}"


def parameters(do: Callable) -> Iterator[tuple[str, str]]:
    for parameter in inspect.signature(do).parameters.values():
        annotation, info = get_args(parameter.annotation)
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
        kind = annotation if annotation in VALUES else kinds[0]
        value = "" if kind is bool else " " + (info.metavar or VALUES[kind])
        if isinstance(info, ArgumentInfo):
            name, value = parameter.name.upper(), ""
        else:
            # Inside Annotated, typer takes the first name for a default.
            names = [info.default, f"--{parameter.name.replace('_', '-')}"]
            name = next(name for name in names if isinstance(name, str)).replace("/", " / ")
        required = parameter.default is inspect.Parameter.empty
        yield (
            code(name + value),
            f"{info.help}{' Required.' if required else ''}"
            + (f" (default {parameter.default})" if isinstance(parameter.default, str) else ""),
        )


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


def default_of(value: object) -> str:
    return "" if value is None else code(str(value).lower())
