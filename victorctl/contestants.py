"""Who is measured beside whom: a model, its base, and simple ways of using the base's weights."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import HF_MODULES_CACHE

from victorctl import checkpoint, lineage
from victorctl.answering import BASE, MODEL, Contestant, Greedy, by_method
from victorctl.errors import VictorError
from victorctl.families import family_of, is_original
from victorctl.folders import explained
from victorctl.methods import FLOOR, made
from victorctl.methods.base import Method
from victorctl.recipe import Recipe, Run
from victorctl.runtime import attention, resolve, say
from victorctl.sources import DEMO, LINEAGE, Source, fetch_weights, open_source

NO_BASE = "none"  # what --base says to leave the base out
CONVERTED = ("victor", "auto_map", "transformers_version")  # what tells nothing of a base's answers


@dataclass(frozen=True)
class Base:
    """The unconverted model.

    Args:
        model: Its weights.
        name: What to call it.
        native: Whether the model is of the native class, in which no method can act.
        identity: What its answers depend on: `sha256` of its weights, and its configuration.
    """

    model: PreTrainedModel
    name: str
    native: bool
    identity: Mapping[str, Any]

    def contestant(self) -> Contestant:
        """Let it answer without registers, and with every visual token."""
        return Contestant(self.model, lambda _rows: self._unconverted())

    def _unconverted(self) -> AbstractContextManager[None]:
        return nullcontext() if self.native else self.model.registers_off()


@dataclass(frozen=True)
class Field:
    """Everyone who takes part.

    Args:
        model: The Victor model.
        base: What it is compared with, if anything.
        ways: Simple ways of acting on the base's weights, by name.
        contestants: All of them: `base`, `model` and the ways.
        greedy: How they answer.
    """

    model: PreTrainedModel
    base: Base | None
    ways: dict[str, Method]
    contestants: dict[str, Contestant]
    greedy: Greedy


def enter(folder: Path, recipe: Recipe, run: Run, hashes: Mapping[str, str] | None = None) -> Field:
    """Load everyone who takes part.

    Args:
        folder: Of the Victor model.
        hashes: Of its base's files, by name, where they are known.
        recipe: Says whether the simple ways take part, and the seed of what is random in them.
        run: Device, number format, and `base`: a folder or Hub id, or "none".

    Raises:
        VictorError: If a folder is damaged, or the base is not to be found or does not fit.
    """
    model = load_shipped(folder, run, recipe.eval.registers)
    base = find_base(folder, model, run, hashes)
    ways = floor(base, model, recipe.seed) if recipe.eval.baselines else {}
    contestants = {} if base is None else {BASE: base.contestant()}
    contestants[MODEL] = Contestant(model, lambda _rows: nullcontext())
    for name, way in ways.items():
        contestants[name] = by_method(way, base.model)
    return Field(
        model, base, ways, contestants, Greedy.of(model, checkpoint.load_processor(folder))
    )


def load_shipped(folder: Path, run: Run, registers: int | None = None) -> PreTrainedModel:
    """Load a Victor model by the code in its folder, so that what users run is what is measured.

    Code that is not this package's is never run; this package's own class takes its place.

    Args:
        folder: Of the model.
        run: Device, number format and attention.
        registers: How many to use; None for all.

    Raises:
        VictorError: If it is no Victor model, or is damaged.
    """
    if not checkpoint.runs_our_code(folder):
        own = "its code is not this package's and is not run; this package's takes its place"
        say(f"warning: {folder}: {own}", quiet=False)
        return checkpoint.load(folder, run, registers)
    auto = partial(AutoModelForImageTextToText.from_pretrained, trust_remote_code=True)
    with explained(Path(HF_MODULES_CACHE), instead="set HF_MODULES_CACHE to a folder"):
        return checkpoint.load_with(auto, folder, run, registers)


def find_base(
    folder: Path, model: PreTrainedModel, run: Run, hashes: Mapping[str, str] | None = None
) -> Base | None:
    """Find what to compare a model with.

    Args:
        folder: Of the model.
        model: Is its own base with registers off, where the base's weights are intact.
        run: `base` names another base, or says "none".
        hashes: Of the base's files in the folder, by name, where they are known.

    Raises:
        VictorError: If there is none, or it has another vocabulary.
    """
    if run.base == NO_BASE:
        return None
    hashes = hashes or checkpoint.hash_base(folder)
    if run.base is None and lineage.base_intact(folder, hashes):
        return Base(model, folder.resolve().name, False, _identity(folder, hashes))
    say("loading its base" + (f" {run.base}" if run.base else ""), quiet=run.quiet)
    source = open_source(run.base) if run.base else _find_parent(folder)
    base = _load_base(source, run)
    ours, theirs = _vocabulary(model), _vocabulary(base.model)
    if ours != theirs:
        raise VictorError(
            f"--base {base.name}: {theirs[0]} token ids with <image> at {theirs[1]}, and the model "
            f"has {ours[0]} with <image> at {ours[1]}: it reads other prompts",
            fix="give the model that was converted, or --base none",
        )
    return base


def check_base(recipe: Recipe, run: Run) -> None:
    """Check what can be known of the base before anything is loaded.

    Raises:
        VictorError: If the simple ways lack one, or there is none of its name.
    """
    if run.base == NO_BASE and recipe.eval.baselines:
        raise VictorError(
            "--baselines --base none: baselines act on the base's weights",
            fix="leave one of the two out",
        )
    if run.base not in (None, NO_BASE):
        open_source(run.base)


def floor(base: Base, model: PreTrainedModel, seed: int) -> dict[str, Method]:
    """Set up the simple ways, each with as many tokens and at the same layer as the model.

    Args:
        base: Its weights will be used.
        model: Says how many tokens, and which layer.
        seed: Of random choices.

    Raises:
        VictorError: If it is of the native class.
    """
    if base.native:
        raise VictorError(
            f"--baselines: they act inside a Victor model, and {base.name} is not one",
            fix=f"victorctl convert {base.name} --out FOLDER, and --base FOLDER",
        )
    victor = model.config.victor
    count, layer = victor["registers"], victor["drop_layer"]
    return {name: made(name, count=count, layer=layer, seed=seed) for name in FLOOR}


def _load_native(folder: Path, run: Run) -> PreTrainedModel:
    device, dtype = resolve(run)
    with checkpoint.quiet_loading():
        model = AutoModelForImageTextToText.from_pretrained(
            folder, trust_remote_code=False, dtype=dtype, attn_implementation=attention(run)
        )
    return model.to(device).eval()


def _load_base(source: Source, run: Run) -> Base:
    fetch_weights(source, ["*.safetensors"])
    config = checkpoint.read_config(source.folder)
    if is_original(config):
        family_of(config, source.name)  # says what to do with it
    if "victor" not in config:
        checkpoint.check_plain(source.folder)
        native = _load_native(source.folder, run)
        known = _identity(source.folder, checkpoint.hash_base(source.folder))
        return Base(native, source.name, True, known)
    hashes = checkpoint.hash_base(source.folder)
    if not lineage.base_intact(source.folder, hashes):
        raise VictorError(
            f"--base {source.name}: the weights of its own base were changed",
            fix="give the model that was converted, or --base none",
        )
    victor = checkpoint.load(source.folder, run)
    return Base(victor, source.name, False, _identity(source.folder, hashes))


def _identity(folder: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Say what a base's answers depend on, whether its folder was converted or not."""
    config = checkpoint.read_config(folder)
    config = {key: value for key, value in config.items() if key not in CONVERTED}
    return {"sha256": lineage.hash_of(hashes), "config": config}


def _find_parent(folder: Path) -> Source:
    """Find what a model was made from and that holds its base: beside it, with us, or on the Hub.

    Raises:
        VictorError: If it is in none of these places.
    """
    stages = lineage.read_lineage(folder)["stages"]
    if not stages:
        raise VictorError(
            f"{folder}: no {LINEAGE}, so nothing says what the model was made from",
            fix="add --base SOURCE with the model that was converted, or --base none",
        )
    origin = stages[0].get("source", {})
    beside = sorted(path for path in folder.resolve().parent.iterdir() if path.is_dir())
    for other in (*beside, *([DEMO] if origin.get("name") == "demo" else [])):
        with suppress(VictorError):  # what is damaged is somebody else's, and not the base
            if _holds_base(other, stages, origin.get("name")):
                return open_source(str(other))
    if origin.get("commit") and "layout" not in origin:
        return open_source(origin["name"], revision=origin["commit"])
    raise VictorError(
        f"{folder}: the weights of its base were changed, and nothing beside it holds them",
        fix="add --base SOURCE with the model that was converted, or --base none",
    )


def _holds_base(folder: Path, stages: Sequence[Mapping[str, Any]], name: str | None) -> bool:
    """Say whether a folder is a stage of a model's history that has its base, or the source."""
    checkpoint.read_config(folder)  # without one it is no model
    intact = {stage["weights_sha256"] for stage in stages if stage["base_intact"]}
    own = lineage.read_lineage(folder)["stages"]
    if own and own[-1]["weights_sha256"] in intact:
        return lineage.weights_sha256(folder) == own[-1]["weights_sha256"]
    if name not in (folder.name, "demo" if folder == DEMO else None):
        return False
    return lineage.hash_of(checkpoint.hash_base(folder)) == stages[0]["parent_sha256"]


def _vocabulary(model: PreTrainedModel) -> tuple[int, int]:
    return model.config.get_text_config().vocab_size, model.config.image_token_id
