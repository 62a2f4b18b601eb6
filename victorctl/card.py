"""The page of a published model, `README.md`: metadata, what was measured, and what was not."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import Environment, PackageLoader, StrictUndefined

from victorctl import __version__, cost
from victorctl.benchmarks import benchmark
from victorctl.checkpoint import load_config
from victorctl.errors import VictorError
from victorctl.licence import Licence
from victorctl.outcome import (
    NOISE_MEANING,
    Grid,
    Line,
    benchmarks,
    costs,
    headline,
    prefills,
    qualities,
    rivals,
    speedups,
)
from victorctl.release import PLOT, Release
from victorctl.sources import BEGIN, END

FRONT = re.compile(r"\A\s*---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
TASK = "image-text-to-text"
OWNED = (
    *("license", "license_name", "license_link", "base_model", "base_model_relation"),
    *("datasets", "model-index", "library_name", "pipeline_tag"),
)  # metadata that are victorctl's to set, or to leave out
TAGS = ("victor", "custom_code", "llava", "visual-token-reduction")


def metadata_of(card: str) -> dict[str, Any]:
    """Read the metadata of a card; none where there are none.

    Raises:
        VictorError: If they are not YAML.
    """
    match = FRONT.match(card)
    try:
        found = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise VictorError(
            f"README.md: its metadata are not YAML ({where})", fix="mend them, or remove them"
        ) from error
    return found if isinstance(found, dict) else {}


def write_card(
    release: Release, repo: str, licence: Licence, own: str = "", dataset: str | None = None
) -> str:
    """Write the card of a model.

    Args:
        release: The model, checked.
        repo: Its name on the Hub.
        licence: Its terms.
        own: The card that there is; text that victorctl did not write, and metadata that it does
            not know, stay.
        dataset: Hub id of the training data.
    """
    known = {key: value for key, value in metadata_of(own).items() if key not in OWNED}
    mine = _metadata(release, repo, licence, dataset)
    theirs = known.get("tags") or []
    theirs = [theirs] if isinstance(theirs, str) else theirs
    tags = [*mine["tags"], *(tag for tag in theirs if tag not in mine["tags"])]
    others = {key: value for key, value in known.items() if key != "tags"}
    front = yaml.safe_dump(
        mine | {"tags": tags} | others, sort_keys=False, allow_unicode=True, width=100
    )
    before, after = own_text(own)
    parts = (before, f"{BEGIN}\n\n{_body(release, repo, licence)}\n\n{END}", after)
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def own_text(card: str) -> tuple[str, str]:
    """Take out of a card what stands before and after what victorctl wrote.

    Raises:
        VictorError: If it does not say where that ends.
    """
    body = FRONT.sub("", card, count=1)
    before, begun, rest = body.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun and "@article{wen2024victor," in body:
        raise VictorError(
            "README.md: what victorctl wrote is there without its two marks, and would be doubled",
            fix="remove that part, or put the marks back around it",
        )
    if begun and not ended:
        raise VictorError(
            f"README.md: the line {END!r} is gone, so nobody knows where your text begins",
            fix="put the line back, behind the part that is generated",
        )
    return before.strip(), after.strip()


def _metadata(release: Release, repo: str, licence: Licence, dataset: str | None) -> dict[str, Any]:
    origin, name = release.origin, repo.rpartition("/")[2]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=list(TAGS),
        base_model=origin["name"] if origin.get("commit") else None,
        datasets=[dataset] if dataset else None,
        **licence.metadata(),
    ).to_dict()
    if origin.get("commit"):
        data["base_model_relation"] = "finetune"
    if release.report:
        data["model-index"] = eval_results_to_model_index(name, _results(release.report))
    return data


def _results(report: Mapping[str, Any]) -> list[EvalResult]:
    """List what was measured as the Hub's index of results takes it, shares in percent."""
    if report.get("benchmarks"):
        limit = report["settings"].get("limit")
        part = "" if limit is None else f", first {limit:,} questions"
        named = report["benchmarks"].items()
        return [one for name, found in named for one in _results_of(name, found, part)]
    data = report["settings"]["data"]
    slug = re.sub(r"[^\w.-]+", "-", data)
    shown = {"accuracy": report["accuracy"]["model"], "accuracy kept": report["kept"]}
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=slug,
            dataset_name=data,
            metric_type=name.replace(" ", "-"),
            metric_name=name,
            metric_value=round(100 * value, 2),
        )
        for name, value in shown.items()
        if value is not None
    ]


def _results_of(name: str, found: Mapping[str, Any], part: str) -> Iterator[EvalResult]:
    """List what was measured on one benchmark: its score, and how much of the base's is kept.

    Args:
        name: Of the benchmark.
        found: Of it.
        part: What of its questions was asked, where not all were.
    """
    data = benchmark(name).data
    scale = 100 if found["highest"] == 1 else 1
    shown = {found["metric"]: (scale, found["score"]["model"]), "kept": (100, found["kept"])}
    for metric, (factor, value) in shown.items():
        if value is not None:
            yield EvalResult(
                task_type=TASK,
                dataset_type=data.repo,
                dataset_name=found["title"] + part,
                dataset_config=data.config,
                dataset_split=data.split,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(factor * value, 2),
            )


def _asked(report: Mapping[str, Any]) -> str:
    """Name what the questions were of."""
    known = report.get("benchmarks")
    return (
        ", ".join(one["title"] for one in known.values()) if known else report["settings"]["data"]
    )


def _last_training(release: Release) -> dict[str, Any]:
    trained = [stage for stage in release.stages if stage["command"] == "finetune"]
    return trained[-1]["settings"] if trained else {}


def _body(release: Release, repo: str, licence: Licence) -> str:
    pages = Environment(
        loader=PackageLoader("victorctl", "assets"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    victor, origin, report = release.config["victor"], release.origin, release.report
    shape = cost.shape_of(load_config(release.folder))
    return (
        pages.get_template("card.md.jinja")
        .render(
            name=repo.rpartition("/")[2],
            repo=repo,
            version=__version__,
            base=_base(origin),
            registers=victor["registers"],
            drop_layer=victor["drop_layer"],
            layers=shape.layers,
            intact=release.stages[-1]["base_intact"],
            trained=release.trained,
            report=report,
            **(_measured(report) if report else {}),
            plot=PLOT in release.files,
            training=_table(_training(release)),
            limits=list(_limits(release)),
            licence=_terms(licence, origin),
        )
        .strip()
    )


def _base(origin: Mapping[str, Any]) -> str:
    """Name the base, with a link where it is on the Hub."""
    name = origin.get("name", "an unknown model")
    if not origin.get("commit"):
        return name
    return f"[{name}](https://huggingface.co/{name}/tree/{origin['commit']})"


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """Say what was found, with the command and what it ran on."""
    settings, quality = report["settings"], qualities(report)
    made = _explained(quality.only("questions", "base", "model", "kept"))
    if benchmarks(report):
        made.append(_table(quality.only("same answers", "KL, nats")))
    made.append(_table(costs(report)))
    if prefills(report):
        made.append(_table(speedups(report)))
    if report["baselines"]:
        made += _explained(rivals(report))
    versions = settings["versions"]
    return {
        "headline": "".join(f"**{text}**" if strong else text for text, strong in headline(report)),
        "tables": made,
        "command": settings["command"],
        "folder": settings["model"],
        "weights": report["weights_sha256"],
        "software": ", ".join(
            f"{name} {versions[name]}" for name in ("victorctl", "torch", "transformers")
        ),
        "device": f"{settings['device']}, {settings['dtype']}, CPU threads: {settings['threads']}",
    }


def _explained(grid: Grid) -> list[str]:
    return [_table(grid), *[NOISE_MEANING] * grid.noisy]


def _table(grid: Grid) -> str:
    """Write a table in Markdown, numbers to the right."""
    grid = grid.known().plain()
    rule = ("---", *("---:" for _ in grid.head[1:]))
    cells = [(line.name, *line.cells) for line in grid.lines]
    rows = [grid.head, rule, *([cell.replace("|", r"\|") for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _training(release: Release) -> Grid:
    """List what was set when the model was trained."""
    settings = _last_training(release)
    shown = {**settings.get("data", {}), **settings.get("train", {})}
    lines = [Line(name, (f"{value}",)) for name, value in shown.items() if value is not None]
    return Grid(("setting", "value"), tuple(lines))


def _limits(release: Release) -> Iterable[str]:
    """Say what nobody knows of the model."""
    report, intact = release.report, release.stages[-1]["base_intact"]
    if not release.trained:
        yield "Its registers were never trained: it sees little of a picture."
    if report is None:
        yield "Nothing was measured."
    else:
        asked = f"{report['questions']:,} questions of {_asked(report)}"
        others = "any other benchmark" if report.get("benchmarks") else "any benchmark"
        yield f"{asked} were asked; what it keeps on others, and on {others}, is not known."
        if not report["baselines"]:
            yield "It was not compared with simpler ways of dropping visual tokens."
        if not prefills(report):
            yield "No speed was measured."
        else:
            several = report["settings"]["speed_batch_size"]
            yield (
                "Speed was measured on one machine: the first token of one question, and the rest "
                f"with {several} at once."
            )
        yield from report["omissions"]
    if intact:
        yield "Prompts without an image are answered by the base's own weights, bit for bit."
    else:
        yield "The base's weights were changed; what became of its answers without images is open."
    yield "Decoding reads all weights for every token, as before: what is gained is in the prompt."


def _terms(licence: Licence, origin: Mapping[str, Any]) -> str:
    named = licence.license_name or licence.license
    linked = f"[{named}]({licence.license_link})" if licence.license_link else f"`{named}`"
    whose = _base(origin)
    if not licence.of_base:
        return f"{linked}, as the publisher states; the base is {whose}."
    return f"{linked}, the terms of its base, {whose}."
