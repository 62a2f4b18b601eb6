"""What a conversion will make: every setting resolved and checked against the source."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from victorctl import cost, weights
from victorctl.checkpoint import (
    check_plain,
    has_chat_template,
    has_processor,
    load_config,
    load_processor,
    read_config,
    refusing_values,
    shard_names,
    weight_files,
    weight_map,
)
from victorctl.errors import VictorError
from victorctl.families import Family, backbone_of, check_backbone, family_of, is_original
from victorctl.features import count_visual_tokens
from victorctl.folders import check_space, on_one_disk
from victorctl.layouts.aspect import check_can_pad
from victorctl.layouts.streams import Weights
from victorctl.layouts.translation import Translation, translate
from victorctl.lineage import read_lineage
from victorctl.recipe import Recipe, Run, flag
from victorctl.sources import BASE_INDEX, Source, fetch_weights

BUFFERS = ("position_ids", "num_batches_tracked")  # which old files hold, too
FORMATS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


@dataclass(frozen=True)
class Plan:
    """What will be made, every setting resolved."""

    source: Source
    family: Family
    backbone: str
    layers: int
    width: int
    visual_tokens: int | None
    recipe: Recipe
    warnings: list[str]
    translation: Translation | None = None
    """Of a source in LLaVA's original layout."""

    @property
    def read(self) -> list[Source]:
        """Everything that is read."""
        return self.translation.sources if self.translation else [self.source]

    @property
    def settings(self) -> dict[str, Any]:
        """The `victor` section of the new `config.json`."""
        victor = self.recipe.victor
        return {
            "registers": victor.registers,
            "drop_layer": victor.drop_layer,
            "positions": victor.positions,
            "adapter": None,
        }


@dataclass(frozen=True)
class Files:
    """The source's weights."""

    paths: list[Path]
    dtype: str
    """Of most of the numbers, as safetensors names it."""
    cast: str | None
    """What they become, where that is something else."""
    translated: Weights | None = None
    """What becomes of them, where the source is in LLaVA's original layout."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        if self.translated is not None:
            return self.translated.size()
        return sum(path.stat().st_size for path in self.paths)


def default_drop_layer(layers: int) -> int:
    """Choose k: 3 of every 32 layers see the visual tokens, and at least 2."""
    return max(2, round(3 * layers / 32))


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """Resolve every setting for this source, from its small files alone.

    Raises:
        VictorError: If the source cannot be converted, or a setting does not fit it.
    """
    translation = None
    if is_original(read_config(source.folder)):
        translation = translate(source, recipe.convert)
        source = translation.staged
    check_plain(source.folder)
    raw = read_config(source.folder)
    family = family_of(raw, source.name)
    if "victor" in raw:
        stages = read_lineage(source.folder)["stages"]
        base = stages[0].get("source", {}).get("name") if stages else None
        raise VictorError(
            f"{source.name}: a Victor model already",
            fix=f"train it with victorctl finetune, or convert {base or 'its base'} again",
        )
    if "quantization_config" in raw:
        raise VictorError(
            f"{source.name}: its weights are quantised, which Victor models cannot be yet",
            fix="convert the model that it was quantised from",
        )
    config = load_config(source.folder)
    text = config.get_text_config()
    check_backbone(text.model_type, source.name)
    shape = checked_shape(config, source)
    notes = list(translation.remarks) if translation else _check_flags(source, family, recipe)
    notes += _check_processor(source, recipe)
    victor = recipe.victor
    if not has_processor(source.folder):
        victor = victor.model_copy(update={"init": "embeddings"})
    if recipe.convert.verify != "full" and not backbone_of(text.model_type):
        notes.append(f"nobody tried to run {text.model_type} in slices: --verify full would")
    drop = victor.drop_layer or default_drop_layer(shape.layers)
    victor = victor.model_copy(update={"drop_layer": drop})
    plan = Plan(
        source=source,
        family=family,
        backbone=text.model_type,
        layers=shape.layers,
        width=shape.hidden,
        visual_tokens=usual_visual_tokens(family, config, source),
        recipe=recipe.model_copy(update={"victor": victor}),
        warnings=notes,
        translation=translation,
    )
    _check_settings(plan)
    return plan


def _check_processor(source: Source, recipe: Recipe) -> list[str]:
    """Say what lacks beside the weights, and refuse a processor that another package is needed for.

    Raises:
        VictorError: If it cannot be loaded, before any weights are fetched.
    """
    notes = []
    if not has_processor(source.folder):
        notes.append(f"{source.name} has no processor: only weights and config.json are converted")
        if recipe.victor.init == "visual":
            notes.append("without a processor, registers are drawn like token embeddings")
    else:
        load_processor(source.folder, source.name)
    if not has_chat_template(source.folder):
        notes.append(f"{source.name} has no chat template: finetune and eval will ask for one")
    return notes


def usual_visual_tokens(family: Family, config: Any, source: Source) -> int | None:
    """Count the visual tokens of a picture as large as the tower's; None where nobody can tell.

    Raises:
        VictorError: If no model can be built as the configuration says, or it cannot see.
    """
    with refusing_values(f"{source.name}: config.json"):
        counted = count_visual_tokens(getattr(transformers, family.native), config)
    return cost.shape_of(config).projected or None if family.fixed else counted


def checked_shape(config: Any, source: Source) -> cost.Shape:
    """Read a model's sizes.

    Raises:
        VictorError: If no model can have them.
    """
    with refusing_values(f"{source.name}: config.json"):
        shape = cost.shape_of(config)
    token = config.image_token_id
    if not (isinstance(token, int) and 0 <= token < shape.vocab):
        raise VictorError(
            f"{source.name}: config.json: the token of pictures, {token}, is none of {shape.vocab}",
            fix="correct image_token_index in the file, or use another copy of the model",
        )
    if min(shape.layers, shape.hidden, shape.vocab) < 1:
        raise VictorError(
            f"{source.name}: config.json describes a text model of {shape.layers} layers, "
            f"{shape.hidden} wide, for {shape.vocab} tokens",
            fix="correct the file, or use another copy of the model",
        )
    return shape


def _check_flags(source: Source, family: Family, recipe: Recipe) -> list[str]:
    """Refuse what only an original layout has a use for, and say what is done to pictures."""
    for key in ("vision_tower", "base"):
        if value := getattr(recipe.convert, key):
            raise VictorError(
                f"{flag(f'convert.{key}')} {value}: {source.name} is whole as it is",
                fix=f"leave {flag(f'convert.{key}')} out",
            )
    if recipe.convert.image_aspect != "pad":
        return []
    check_can_pad(source.folder, source.name)
    return ["pictures are padded to squares, as in the original LLaVA 1.5"]


def _check_settings(plan: Plan) -> None:
    victor = plan.recipe.victor
    if victor.drop_layer >= plan.layers:
        fix = f"choose 1 to {plan.layers - 1}" if plan.layers > 1 else "use a deeper model"
        raise VictorError(
            f"--drop-layer {victor.drop_layer}: the text model of {plan.source.name} has "
            f"{plan.layers} layers, so nothing would be dropped",
            fix=fix,
        )
    too_many = plan.visual_tokens is not None and victor.registers > plan.visual_tokens
    if victor.positions == "overlay" and too_many:
        raise VictorError(
            f"--registers {victor.registers}: an image of {plan.source.name} has "
            f"{plan.visual_tokens} visual tokens to overlay",
            fix=f"choose 1 to {plan.visual_tokens}, or --positions append",
        )


def check_files(plan: Plan, run: Run) -> Files:
    """Fetch the weights if need be, and check their headers and the room for them.

    Raises:
        VictorError: If a file is missing or not whole, lacks a tensor, or does not fit on the disk.
    """
    if plan.translation is not None:
        return _check_original(plan, plan.translation, run)
    folder, settings = plan.source.folder, plan.recipe.convert
    fetch_weights(plan.source, shard_names(folder) or ["model.safetensors"])
    paths = weight_files(folder)
    shards = {path.name: weights.read_entries(path) for path in paths}
    entries = [entry for found in shards.values() for entry in found]
    if len(shards) > 1:
        weights.check_index(plan.source.name, weight_map(plan.source.folder / BASE_INDEX), shards)
    formats = _formats(plan, entries)
    _check_numbers(plan, entries)
    files = Files(paths, *formats)
    if files.cast and settings.link:
        raise VictorError(
            f"--link --dtype {settings.dtype}: a link cannot have another number format",
            fix="leave one of the two out",
        )
    _check_room(files, run, link=settings.link)
    return files


def _check_numbers(plan: Plan, entries: Sequence[weights.Entry]) -> None:
    """Refuse weights that are no floating-point numbers, or of more or fewer layers than said."""
    for entry in entries:
        if entry.dtype not in weights.NAMES and not entry.name.endswith(BUFFERS):
            problem = f"tensor {entry.name} holds {entry.dtype}, not floating-point numbers"
            raise VictorError(
                f"{plan.source.name}: {problem}", fix="convert the model before quantising it"
            )
    numbers = {
        int(found[2]) for entry in entries if (found := weights.TEXT_LAYER.search(entry.name))
    }
    if len(numbers) != plan.layers:
        raise VictorError(
            f"{plan.source.name}: its weights have {len(numbers)} layers of the text model, and "
            f"config.json says {plan.layers}",
            fix="use a copy whose weights and config.json belong together",
        )


def _check_original(plan: Plan, translation: Translation, run: Run) -> Files:
    if plan.recipe.convert.link:
        raise VictorError(
            f"--link: the weights of {plan.source.name} are in LLaVA's original layout, and are "
            "written anew",
            fix="leave --link out",
        )
    found = translation.weights()
    plan.warnings.extend(set(translation.remarks) - set(plan.warnings))  # that the weights told
    dtype, cast = _formats(plan, [tensor.old for tensor in found.tensors])
    files = Files(list(found.names), dtype, cast, found)
    _check_room(files, run, link=False)
    return files


def _formats(plan: Plan, entries: Iterable[weights.Entry]) -> tuple[str, str | None]:
    """Find the number format of most weights, and what it becomes, if that is another."""
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.dtype in weights.NAMES:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.stop - entry.start
    if not sizes:
        raise VictorError(f"{plan.source.name}: its weights hold no numbers", fix=weights.AGAIN)
    wanted = FORMATS.get(plan.recipe.convert.dtype)
    return max(sizes, key=sizes.get), None if set(sizes) == {wanted} else wanted


def _check_room(files: Files, run: Run, *, link: bool) -> None:
    linkable = not files.cast and files.translated is None and on_one_disk(run.out, files.paths)
    if link and linkable:
        check_space(run.out, 0)
    else:
        needed = 2 * files.size if files.cast else files.size
        check_space(run.out, needed, instead=", or use --link" if linkable else "")
