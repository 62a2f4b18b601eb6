"""The inspect stage: what a model is, and what Victor makes of it, without loading its weights."""

import math
from collections import Counter
from typing import Any

import transformers
from PIL import Image

from victorctl import cost, foresight, weights
from victorctl.checkpoint import (
    PICKLES,
    check_plain,
    has_processor,
    load_config,
    load_processor,
    read_config,
    refusing_values,
    shipped_code_intact,
    weight_files,
)
from victorctl.conversion import checked_shape, default_drop_layer, usual_visual_tokens
from victorctl.data.conversations import Row
from victorctl.data.pictures import process
from victorctl.errors import VictorError
from victorctl.families import Family, family_of, is_original
from victorctl.features import count_visual_tokens, outline
from victorctl.layouts.translation import Translation, translate
from victorctl.lineage import read_lineage
from victorctl.modeling_victor import WEIGHTS
from victorctl.recipe import Recipe
from victorctl.sections import ConvertSection, VictorSection
from victorctl.sources import BASE_INDEX, Source, open_source

PICTURE = 480, 640  # height and width of most pictures in COCO
TEXT = 64  # tokens of the prompt beside the picture, in the estimate


def inspect(
    source: str,
    *,
    picture: tuple[int, int] = PICTURE,
    vision_tower: str | None = None,
    base: str | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Describe a model from its configuration and the headers of its weights.

    Args:
        source: A folder or a Hub id, whose small files alone are fetched.
        picture: Height and width in pixels of the picture that visual tokens are counted of.
        vision_tower: Of an original whose weights hold none: a folder, or Hub id.
        base: Language model of an original that is an update or a projector, alike.
        recipe: Estimate what this one's training would need; its `victor` is for a model that is
            not converted yet.

    Returns:
        The keys of `inspect --json`.

    Raises:
        VictorError: If there is no such model, it is of no family that can be converted, or a file
            is not whole.
    """
    place = open_source(source)
    translation = None
    if is_original(read_config(place.folder)):
        translation = translate(place, ConvertSection(vision_tower=vision_tower, base=base))
        place = translation.staged
    check_plain(place.folder)
    raw = read_config(place.folder)
    family = family_of(raw, place.name)
    config = load_config(place.folder)
    shape, settings = checked_shape(config, place), raw.get("victor")
    numbers = _count_numbers(place) if translation is None else _count_original(translation)
    layout = translation.kind if translation else "hf" if settings is None else "victor"
    with refusing_values(f"{place.name}: config.json"):
        visual = _visual_tokens(place, family, config, picture)
    chosen = settings or _settings(recipe.victor if recipe else VictorSection(), shape)
    found = {
        "source": place.name,
        "family": family.model_type,
        "layout": layout,
        "backbone": config.get_text_config().model_type,
        "layers": shape.layers,
        "hidden_size": shape.hidden,
        "parameters": sum(numbers.values()) or None,
        "dtype": numbers.most_common(1)[0][0] if numbers else _name(config.dtype),
        "visual_tokens": visual,
        "victor": None if settings is None else _describe(place, settings),
        "estimate": _estimate(shape, visual, chosen),
    }
    if recipe is None:
        return found
    if not visual:
        raise VictorError(
            f"{place.name}: only its processor knows how many visual tokens a picture has, and it "
            "is not there",
            fix="leave out --recipe and --set",
        )
    seen = outline(getattr(transformers, family.native), config, picture)
    how = {"visual": visual, "victor": chosen}
    return found | {"training": foresight.of_config(config, recipe.train, seen, **how)}


def _settings(victor: VictorSection, shape: cost.Shape) -> dict[str, Any]:
    """Say what a model that is not converted would become."""
    drop = victor.drop_layer or default_drop_layer(shape.layers)
    return {"registers": victor.registers, "drop_layer": drop}


def _visual_tokens(
    place: Source, family: Family, config: Any, picture: tuple[int, int]
) -> int | None:
    """Count a picture's visual tokens; None where the processor decides, and is not to be had."""
    if family.fixed:
        return usual_visual_tokens(family, config, place)
    if getattr(config, "image_grid_pinpoints", None):
        return count_visual_tokens(getattr(transformers, family.native), config, picture)
    if not has_processor(place.folder):
        return None
    try:
        processor = load_processor(place.folder)
    except VictorError:
        return None
    row = Row("", (Image.new("RGB", picture[::-1]),), ())
    _, (tokens,) = process(row, processor)
    return tokens.count(processor.image_token_id)


def _name(dtype: object) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _count_numbers(source: Source) -> Counter[str]:
    """Count the base's parameters by number format, from the headers of its files."""
    if not source.is_here:
        return _count_on_hub(source)
    numbers: Counter[str] = Counter()
    kinds = {".safetensors", *PICKLES}
    if not any(path.suffix in kinds or path.name == BASE_INDEX for path in source.folder.iterdir()):
        return numbers  # a configuration by itself, or with a tokenizer
    for file in weight_files(source.folder):
        for entry in weights.read_entries(file):
            numbers[weights.NAMES.get(entry.dtype, entry.dtype)] += entry.count
    return numbers


def _count_original(translation: Translation) -> Counter[str]:
    """Count what the weights become that are there; nothing where they would have to be fetched."""
    numbers: Counter[str] = Counter()
    for tensor in translation.numbers() if translation.is_here else ():
        numbers[weights.NAMES[tensor.old.dtype]] += math.prod(tensor.shape)
    return numbers


def _count_on_hub(source: Source) -> Counter[str]:
    """Ask the Hub for the headers; nothing where it does not answer, or there are none."""
    from huggingface_hub import HfApi, errors

    try:
        found = HfApi().get_safetensors_metadata(source.name, revision=source.commit)
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.NotASafetensorsRepoError):
        return Counter()
    return Counter({weights.NAMES.get(kind, kind): n for kind, n in found.parameter_count.items()})


def _describe(source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """Tell the settings, what they added, and how the folder came about."""
    file = source.folder / WEIGHTS
    here = source.is_here or file.is_file()  # of a Hub id it is not fetched
    added = sum(entry.count for entry in weights.read_entries(file)) if here else None
    stages = read_lineage(source.folder)["stages"]
    return {
        **settings,
        "parameters": added,
        "base_intact": stages[-1]["base_intact"] if stages else None,
        "code_current": shipped_code_intact(source.folder) if source.is_here else None,
        "lineage": stages,
    }


def _estimate(
    shape: cost.Shape, tokens: int | None, chosen: dict[str, Any]
) -> dict[str, float] | None:
    """Compare the prefill of one picture and a short question with the unconverted model's."""
    if not tokens or shape.layers < 2:
        return None
    k, m = chosen["drop_layer"], chosen["registers"]
    visual = {"visual": tokens, "text": TEXT}
    ours = cost.tokens_per_layer(shape.layers, k, registers=m, **visual)
    base = cost.tokens_per_layer(shape.layers, shape.layers, registers=0, **visual)
    flops = cost.prefill_flops(shape, ours)
    if adapter := chosen.get("adapter"):
        adapted = k if adapter["layers"] == "early" else shape.layers
        flops += cost.adapter_flops(shape, m, rank=adapter["rank"], layers=adapted)
    return {
        "registers": m,
        "drop_layer": k,
        "text_tokens": TEXT,
        "mean_visual_tokens": cost.mean_visual_tokens(shape.layers, k, visual=tokens, registers=m),
        "flops_ratio": flops / cost.prefill_flops(shape, base),
        "cache_ratio": cost.cache_bytes(shape, ours) / cost.cache_bytes(shape, base),
    }
