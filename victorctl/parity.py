"""Proof that a conversion changes nothing, and what the source model says about its own states."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from victorctl.checkpoint import load_config, load_processor, quiet_loading
from victorctl.data.batches import join_images, to_model
from victorctl.data.conversations import Row
from victorctl.data.pictures import process
from victorctl.data.scenes import scene
from victorctl.errors import CheckFailed, VictorError
from victorctl.families import OTHER_BACKBONE, Family
from victorctl.features import see, seeing_config, taken
from victorctl.modeling_victor import VictorText, mix

WORDS = 24  # text tokens of the probe
BEFORE = 4  # of them before the picture


@contextmanager
def native_model(  # noqa: PLR0913
    folder: Path,
    family: Family,
    *,
    dtype: torch.dtype | str,
    device: torch.device,
    attn: str | None,
    seeing: bool = False,
) -> Iterator[nn.Module]:
    """Load a folder as the unconverted model, with transformers' own class; it is freed at the end.

    Args:
        folder: Holds the weights; on the device "meta" their headers alone are read.
        family: Says which class.
        dtype: As stored, or another.
        device: Where to.
        attn: Attention; None for the default.
        seeing: Load what sees pictures, and of the text model a single layer.

    Raises:
        VictorError: If a tensor is missing or has no place in the model.
    """
    config = seeing_config(load_config(folder)) if seeing else load_config(folder)
    with quiet_loading():
        model, report = getattr(transformers, family.native).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attn,
            device_map=device if device.type == "meta" else None,  # of weights the headers alone
            ignore_mismatched_sizes=True,  # only so that the report names them
            output_loading_info=True,
        )
    kinds = ("missing_keys", "mismatched_keys") + (() if seeing else ("unexpected_keys",))
    for kind in kinds:
        if names := sorted(key if isinstance(key, str) else key[0] for key in report[kind]):
            raise VictorError(
                f"{folder}: {len(names)} {kind.split('_')[0]} tensors, such as {names[0]}",
                fix="use a copy whose weights and config.json belong together",
            )
    try:
        with torch.inference_mode():
            yield model.to(device).eval()
    finally:
        del model
        gc.collect()


def check_slices(text: nn.Module, drop_layer: int) -> None:
    """Check that the text model run in two slices is the text model, on random embeddings.

    Args:
        text: Text model of the native class.
        drop_layer: Where it is cut.

    Raises:
        VictorError: If it is not, with the model's name.
    """
    if trouble := _trouble(text, drop_layer):
        raise VictorError(
            f"the text model {type(text).__name__} cannot be run in slices, so nothing can be "
            f"dropped between its layers: {trouble}",
            fix=OTHER_BACKBONE,
        )


def _trouble(text: nn.Module, drop_layer: int) -> str | None:
    if not isinstance(getattr(text, "layers", None), nn.ModuleList) or not hasattr(text, "norm"):
        return "its layers or its last norm have other names"
    kept = [type(layer) for layer in DynamicCache(config=text.config).layers]
    if len(kept) != len(text.layers) or set(kept) - {DynamicLayer, DynamicSlidingWindowLayer}:
        return "not every layer keeps keys and values of its own"
    weight = text.get_input_embeddings().weight
    sizes = (1, WORDS, text.config.hidden_size)
    hidden = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    hidden = (hidden * weight.std().item()).to(weight.device, weight.dtype)
    whole, cut = _run_whole_and_cut(text, hidden, drop_layer)
    if not whole.isfinite().all():  # the weights' own check names the tensor
        return None
    close = (whole - cut).abs().max() <= 2 * torch.finfo(whole.dtype).eps * whole.abs().max()
    return None if close else "two slices compute something else than the whole"


def _run_whole_and_cut(text: nn.Module, hidden: Tensor, drop_layer: int) -> tuple[Tensor, Tensor]:
    native, count = type(text), len(text.layers)
    common = {
        "attention_mask": torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device),
        "position_ids": torch.arange(hidden.shape[1], device=hidden.device)[None],
        "use_cache": False,
    }
    text.__class__ = mix(VictorText, native)
    try:
        views = [
            VictorText.layer_slice(text, *ends) for ends in ((0, drop_layer), (drop_layer, count))
        ]
    finally:
        text.__class__ = native
    whole = cut = hidden
    whole = text(inputs_embeds=whole, **common).last_hidden_state
    for view in views:
        cut = native.forward(view, inputs_embeds=cut, **common).last_hidden_state
    return whole, cut


def pictures(folder: Path, count: int) -> dict[str, Tensor]:
    """Draw the demo's scenes and process them as the folder's own processor does."""
    processor = load_processor(folder)
    drawn = [Row("", (scene(seed, "train").picture(),), ()) for seed in range(count)]
    return join_images([process(row, processor)[0] for row in drawn])


def visual_tokens(model: nn.Module, pixels: Mapping[str, Tensor]) -> list[Tensor]:
    """Run vision tower and projector: visual tokens [count, width] of every picture or tile."""
    return list(see(model, pixels).pooler_output)


def probe(model: nn.Module, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make a prompt: random words of the vocabulary around one picture.

    Args:
        model: Native model.
        pixels: One processed picture.
    """
    image = model.config.image_token_id
    vocabulary = model.config.get_text_config().vocab_size
    words = torch.randint(vocabulary, (WORDS,), generator=torch.Generator().manual_seed(0))
    words[words == image] = (image + 1) % vocabulary
    count = sum(len(part) for part in visual_tokens(model, pixels))
    ids = torch.cat([words[:BEFORE], torch.full((count,), image), words[BEFORE:]])[None]
    shown = {name: pixels[name] for name in taken(model.forward, pixels)}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}  # [1, tokens]


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Answer a probe [1, tokens, vocabulary]."""
    return model(**to_model(inputs, model)).logits.float().cpu()


def check_equal(expected: Tensor, found: Tensor, what: str, tolerance: float = 0.0) -> float:
    """Compare logits bit for bit, or as closely as rounding allows.

    Args:
        expected: Of the source [batch, tokens, vocabulary].
        found: Of the result; its vocabulary may be larger.
        what: What gave them, for the error.
        tolerance: Share of the largest logit by which any may differ.

    Returns:
        The largest difference.

    Raises:
        CheckFailed: If they differ by more.
    """
    found = found[..., : expected.shape[-1]]
    if torch.allclose(expected, found, rtol=0, atol=0, equal_nan=True):
        return 0.0
    difference = (expected - found).abs().max().item()
    if difference <= tolerance * expected.abs().max().item():
        return difference
    raise CheckFailed(
        f"the logits of {what} differ from the source's by {(expected - found).abs().max():g}",
        fix="report this with the model's name; --verify hash leaves the comparison out",
    )


def check_hashes(source: Mapping[str, str], copy: Mapping[str, str]) -> bool:
    """Compare the hashes of files with those of their copies.

    Raises:
        CheckFailed: If they differ.
    """
    for name, value in source.items():
        if copy[name] != value:
            problem = f"{name}: what was written is not what was read"
            raise CheckFailed(problem, fix="check the disk, and convert again")
    return True
