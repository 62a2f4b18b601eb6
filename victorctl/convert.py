"""The convert stage: turn a LLaVA into a Victor model, its weights untouched."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from victorctl import parity, weights
from victorctl.checkpoint import (
    copy_files,
    copy_small_files,
    fixes_of_shipped_file,
    has_processor,
    load,
)
from victorctl.conversion import Files, Plan, check_files, make_plan
from victorctl.errors import VictorError
from victorctl.families import backbone_of
from victorctl.features import noise
from victorctl.folders import check_output, check_outside, remove_leftovers, writing
from victorctl.layouts.aspect import pad_to_square
from victorctl.layouts.proof import MERGED, known_words, original_model
from victorctl.layouts.streams import Written, check_kept, write
from victorctl.lineage import add_stage, hash_of
from victorctl.modeling_victor import PREFIX, WEIGHTS, write_config, write_indexes
from victorctl.recipe import Recipe, Run
from victorctl.registers import draw_registers
from victorctl.runtime import (
    attention,
    free_memory,
    peak_memory,
    reading,
    resolve,
    set_threads,
)
from victorctl.sources import check_fetched, open_source
from victorctl.units import size

PICTURES = 16  # that the registers' distribution is measured on


@dataclass(frozen=True)
class Base:
    """The base's weights, and what is known of the files that they came from."""

    files: Files
    """As they are to be read."""
    originals: dict[str, str]
    """SHA-256 of the source's files, by name."""
    intact: bool
    """Whether no number was cast."""
    written: Written | None = None
    """What translating them gave, where the source is in LLaVA's original layout."""

    @property
    def known(self) -> dict[str, str]:
        """SHA-256 of what was copied or translated, by the name in the new folder."""
        return self.written.files if self.written else self.originals

    def check_hashes(self, folder: Path) -> bool:
        """Read the new folder again, and compare with what the source's files held.

        Raises:
            CheckFailed: If something differs.
        """
        if self.written:
            return check_kept(self.written, folder)
        return self.intact and parity.check_hashes(
            self.known, {name: weights.sha256(folder / name) for name in self.known}
        )


@dataclass(frozen=True)
class Evidence:
    """What the source model said: a probe with its logits, and visual tokens of pictures."""

    inputs: dict[str, Tensor]
    logits: Tensor
    visual: list[np.ndarray]


def convert(source: str, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Write a folder that is the source and a Victor model at once.

    Args:
        source: A folder, or a Hub id, in the layout of transformers or in LLaVA's original ones.
        recipe: Sections `victor` and `convert`, and the seed.
        run: Where and on what; `out` is needed.

    Returns:
        The keys of `convert --json`.

    Raises:
        VictorError: If the source or a setting does not fit; nothing is left behind.
        CheckFailed: If the new folder does not compute what the source does.
    """
    started = time.perf_counter()
    set_threads(run.threads)
    resolve(run)  # refuse a device that is not here before anything is fetched
    if run.out is None:
        raise VictorError("convert needs a folder to write", fix="add --out FOLDER")
    check_output(run.out, overwrite=run.overwrite)
    plan = make_plan(open_source(source, revision=recipe.convert.revision), recipe)
    for read in plan.read:
        check_outside(run.out, read.folder)
    proof = {"hashes_equal": None, "max_logit_difference": None}
    intact = True if recipe.convert.dtype == "auto" else None
    here = all(read.is_here for read in plan.read)
    if here or not run.dry_run:
        if not run.dry_run:
            remove_leftovers(run.out)
        files = check_files(plan, run)
        intact = files.cast is None
        if not run.dry_run:
            proof = _make(plan, files, run)
    return {
        "out": str(run.out),
        "family": plan.family.model_type,
        "backbone": plan.backbone,
        "layers": plan.layers,
        "drop_layer": plan.recipe.victor.drop_layer,
        "registers": plan.recipe.victor.registers,
        "positions": plan.recipe.victor.positions,
        "init": plan.recipe.victor.init,
        "layout": plan.translation.kind if plan.translation else "hf",
        "visual_tokens": plan.visual_tokens,
        "base_intact": intact,
        "parity": proof,
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory(),
        "warnings": plan.warnings,
        "not_checked": _not_checked(here) if run.dry_run else [],
    }


def _not_checked(here: bool) -> list[str]:
    """Say what a dry run cannot know."""
    if here:
        return ["whether all weights are numbers", "whether both models agree: neither was run"]
    return [
        "weights and disk space: nothing large was downloaded",
        "whether both models agree: neither was run",
    ]


def _make(plan: Plan, files: Files, run: Run) -> dict[str, Any]:
    """Ask the source, write the folder, and prove it; it appears only if all of that holds."""
    plan = _spare_memory(plan, files, run)
    if plan.translation is None:
        evidence = _ask(plan, files, run)
        with writing(run.out, overwrite=run.overwrite) as folder:
            base = Base(files, _copy(plan, files, folder, run), files.cast is None)
            if plan.recipe.convert.image_aspect == "pad":
                pad_to_square(folder)
            return _finish(plan, base, evidence, folder, run)
    with writing(run.out, overwrite=run.overwrite) as folder:
        base = _translate(plan, files, folder, run)
        plan = replace(plan, source=replace(plan.source, folder=folder))
        return _finish(plan, base, _ask(plan, base.files, run), folder, run)


def _spare_memory(plan: Plan, files: Files, run: Run) -> Plan:
    """Prove no more than the hashes where the model does not fit into memory, and say so."""
    needed, free = 1.2 * files.size, free_memory(resolve(run)[0])
    if plan.recipe.convert.verify != "full" or needed <= free:
        return plan
    plan.warnings.append(
        f"{plan.source.name} needs {size(needed)} of memory, and {size(free)} are free: tensors "
        "were compared, but not what both models compute"
        + ("" if backbone_of(plan.backbone) else f", and nobody ran {plan.backbone} in slices")
    )
    convert = plan.recipe.convert.model_copy(update={"verify": "hash"})
    return replace(plan, recipe=plan.recipe.model_copy(update={"convert": convert}))


def _finish(
    plan: Plan, base: Base, evidence: Evidence | None, folder: Path, run: Run
) -> dict[str, Any]:
    """Add what makes the folder a Victor model, prove it, and record what was done."""
    recipe, files = plan.recipe, base.files
    check_fetched(plan.translation.original if plan.translation else plan.source, base.originals)
    dtype = getattr(torch, weights.NAMES[files.cast or files.dtype])
    registers = draw_registers(plan, files, evidence.visual if evidence else []).to(dtype)
    own = {f"{PREFIX}registers.weight": registers}
    weights.write_file(folder / WEIGHTS, own, {"format": "pt"})
    write_indexes(folder, base.known)
    write_config(folder, plan.settings, plan.family.native, plan.family.ours)
    proof = {"hashes_equal": None, "max_logit_difference": None}
    if recipe.convert.verify != "none":
        proof["hashes_equal"] = base.check_hashes(folder)
    if recipe.convert.verify == "full":
        proof["max_logit_difference"] = _compare(plan, folder, evidence, run)
    add_stage(
        folder,
        command="convert",
        settings=recipe.model_dump(include={"victor", "convert"}),
        parent_sha256=hash_of(base.known),
        seed=recipe.seed,
        base_intact=base.intact,
        known=base.known if base.intact or base.written else None,
        details={"source": _origin(plan), "source_files": base.originals, "parity": proof},
    )
    return proof


def _origin(plan: Plan) -> dict[str, Any]:
    """Say where the model came from, and what a translation was made of."""
    origin = {"name": plan.source.name, "commit": plan.source.commit}
    if plan.translation is None:
        return origin
    others = {"base": plan.translation.base, "vision_tower": plan.translation.tower}
    return origin | {
        "layout": plan.translation.kind,
        **{
            role: {"name": other.name, "commit": other.commit}
            for role, other in others.items()
            if other is not None
        },
    }


def _ask(plan: Plan, files: Files, run: Run) -> Evidence | None:
    """Run the source model once: its slices, a probe, and the visual tokens of pictures."""
    folder, device = plan.source.folder, resolve(run)[0]
    verify, drawn = plan.recipe.convert.verify, plan.recipe.victor.init == "visual"
    full = verify == "full"
    if verify == "hash":
        how = {"dtype": "auto", "device": torch.device("meta"), "attn": None}
        with parity.native_model(folder, plan.family, **how):
            pass  # each tensor has its place, and its shape
    dtype = getattr(torch, weights.NAMES[files.cast]) if files.cast else "auto"
    how = {"dtype": dtype, "device": device, "attn": attention(run)}
    if not full:
        return _look(plan, how) if drawn else None
    if plan.translation is not None:
        how["dtype"] = getattr(torch, weights.NAMES[files.dtype])
        source = original_model(plan.translation, plan.family, **how)
    else:
        source = parity.native_model(folder, plan.family, **how)
    with source as model:
        parity.check_slices(model.get_decoder(), plan.recipe.victor.drop_layer)
        known = has_processor(folder)
        pixels = parity.pictures(folder, 1) if known else noise(model)
        inputs, vocab = parity.probe(model, pixels), None
        if plan.translation is not None:
            vocab = plan.translation.vocab
            inputs["input_ids"] = known_words(
                inputs["input_ids"], vocab, model.config.image_token_id
            )
        visual = []
        if drawn:
            tokens = parity.visual_tokens(model, parity.pictures(folder, PICTURES))
            visual = [each.float().cpu().numpy() for each in tokens]
        evidence = Evidence(inputs, parity.logits(model, inputs)[..., :vocab], visual)
        del model  # the last hold on it, so that it is gone before the next is loaded
    return evidence


def _look(plan: Plan, how: dict[str, Any]) -> Evidence:
    """Draw visual tokens of pictures, without the layers of the text model."""
    folder = plan.source.folder
    with parity.native_model(folder, plan.family, **how, seeing=True) as model:
        tokens = parity.visual_tokens(model, parity.pictures(folder, PICTURES))
        return Evidence({}, torch.empty(0), [each.float().cpu().numpy() for each in tokens])


def _translate(plan: Plan, files: Files, folder: Path, run: Run) -> Base:
    """Write a source in LLaVA's original layout as one in that of transformers."""
    copy_small_files(plan.source.folder, folder)
    with reading("convert", files.size, quiet=run.quiet) as advance:
        written = write(files.translated, folder, files.cast, advance)
    dtype = files.cast or files.dtype
    _write_dtype(folder, weights.NAMES[dtype])
    made = Files([folder / name for name in written.files], dtype, None)
    return Base(made, written.originals, files.cast is None, written)


def _copy(plan: Plan, files: Files, folder: Path, run: Run) -> dict[str, str]:
    """Copy or cast the source, and return the SHA-256 of the source's files by name."""
    with reading("convert", files.size, quiet=run.quiet) as advance:
        if files.cast is None:
            link = plan.recipe.convert.link
            return copy_files(plan.source.folder, folder, link=link, advance=advance)
        copy_small_files(plan.source.folder, folder)
        _write_dtype(folder, weights.NAMES[files.cast])
        return {
            path.name: weights.cast_file(
                path, folder / path.name, dtype=files.cast, advance=advance
            )
            for path in files.paths
        }


def _write_dtype(folder: Path, dtype: str) -> None:
    """Make `config.json` name the number format that the weights now have."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        if part is config or {"dtype", "torch_dtype"} & set(part):
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _compare(plan: Plan, folder: Path, evidence: Evidence, run: Run) -> float:
    """Load the new folder both ways and compare what each says with what the source said."""
    device, _ = resolve(run)
    merged = plan.translation is not None and plan.translation.kind == "original-lora"
    tolerance = MERGED if merged else 0.0
    with parity.native_model(
        folder, plan.family, dtype="auto", device=device, attn=attention(run)
    ) as model:
        plain = parity.check_equal(
            evidence.logits,
            parity.logits(model, evidence.inputs),
            "the folder's base model",
            tolerance,
        )
        del model
    victor = load(folder, replace(run, dtype="auto"))
    with torch.inference_mode(), fixes_of_shipped_file():
        with victor.registers_off():
            off = parity.logits(victor, evidence.inputs)
        parity.logits(victor, evidence.inputs)  # it runs with its registers, too
    what = "the Victor model without registers"
    return max(plain, parity.check_equal(evidence.logits, off, what, tolerance))
