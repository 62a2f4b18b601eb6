"""Tiny Victor models, prompts written as words, and another account of what a model computes."""

import copy
import functools
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tests.modeling.laws import hook_offset, hook_update
from tests.tiny import VISUAL_TOKENS, tiny_model, tiny_processor
from victorctl.modeling_victor import CACHE, VictorLlava

IMAGE = 4  # the id of "<image>" in the vocabulary of `tests.tiny`
ADAPTER = {"rank": 4, "alpha": 6.0, "layers": "all"}  # alpha != rank, so that the scale shows
ALL = {"adapter": ADAPTER, "deep": True}  # everything that may be learned beside registers
ENDS = 2  # the id of "</s>"
PLAIN = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [IMAGE, ENDS]}
BATCH = ("ab#cd", "#e#f", "gh")  # one image, two, and none


def victor_llava(  # noqa: PLR0913
    text: str = "llama",
    *,
    registers: int = 3,
    drop_layer: int = 2,
    positions: str = "overlay",
    adapter: dict[str, Any] | None = None,
    deep: bool = False,
    window: int | None = None,
) -> VictorLlava:
    """Wrap `tiny_model(text=text)`, with registers, offsets and adapters that are not zero.

    Args:
        text: Backbone.
        registers: M.
        drop_layer: k.
        positions: `overlay` or `append`.
        adapter: `rank`, `alpha` and `layers`, or None.
        deep: Registers have offsets.
        window: Sliding window of the text model; under qwen2 in every other layer.
    """
    native = tiny_model(text=text)
    config = copy.deepcopy(native.config)
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32  # as where a model was loaded
    if window:
        config.text_config.sliding_window = window
        if text == "qwen2":
            config.text_config.layer_types = ["full_attention", "sliding_attention"] * 3
    config.victor = {
        "registers": registers,
        "drop_layer": drop_layer,
        "positions": positions,
        "adapter": adapter,
    }
    if deep:  # absent where a folder was written before there were any
        config.victor["deep"] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = VictorLlava(config).eval()
        for name, parameter in model.victor.named_parameters():
            nn.init.normal_(parameter, std=0.4 if name.startswith("registers") else 0.2)
    model.load_state_dict(model.state_dict() | native.state_dict())
    model.generation_config = native.generation_config
    return model


shared_native = functools.cache(tiny_model)
"""Like `tiny_model`, built once for equal arguments: not to be changed."""


@functools.cache
def shared(text: str = "llama", *, adapted: bool = False, **settings: Any) -> VictorLlava:
    """Like `victor_llava`, built once for equal arguments: not to be changed."""
    return victor_llava(text, **(ALL if adapted else {}), **settings)


def victor_folder(folder: Path, model: VictorLlava, **how: Any) -> Path:
    """Save a model and the processor that goes with it."""
    model.save_pretrained(folder, **how)
    tiny_processor().save_pretrained(folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Hash every file of a folder."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---- Prompts -------------------------------------------------------------------------------------


def ids(prompt: str) -> list[int]:
    """Spell a prompt: a letter is a text token, `#` the placeholders of an image."""
    spelled = [[IMAGE] * VISUAL_TOKENS if sign == "#" else [ord(sign) - 87] for sign in prompt]
    return [token for part in spelled for token in part]


def pictures(count: int, first: int = 0) -> Tensor:
    """Draw the pictures number first, first + 1, ... [count, 3, 32, 32]."""
    seeds = [torch.Generator().manual_seed(1 + first + number) for number in range(count)]
    return torch.stack([torch.randn(3, 32, 32, generator=seed) for seed in seeds])


def inputs(*prompts: str, side: str = "left", first: int = 0) -> dict[str, Tensor]:
    """Batch prompts as a processor does; their pictures are numbered on from `first`."""
    rows = [ids(prompt) for prompt in prompts]
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    masks = [[1] * len(row) for row in rows]
    if side == "left":
        rows = [pad + row for pad, row in zip(pads, rows, strict=True)]
        masks = [pad + mask for pad, mask in zip(pads, masks, strict=True)]
    else:
        rows = [row + pad for pad, row in zip(pads, rows, strict=True)]
        masks = [mask + pad for pad, mask in zip(pads, masks, strict=True)]
    made = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    if count := "".join(prompts).count("#"):
        made["pixel_values"] = pictures(count, first)
    return made


def each(*prompts: str) -> list[dict[str, Tensor]]:
    """Make the inputs of every prompt alone, with the pictures that it has in the batch of all."""
    seen = ["".join(prompts[:place]).count("#") for place in range(len(prompts))]
    return [inputs(prompt, first=first) for prompt, first in zip(prompts, seen, strict=True)]


def labelled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ask for every text token but the first of each row, as in training."""
    mask = batch["attention_mask"]
    asked = (batch["input_ids"] != IMAGE) & (mask == 1) & (mask.cumsum(dim=1) > 1)
    return {**batch, "labels": batch["input_ids"].masked_fill(~asked, -100)}


# ---- What models say -----------------------------------------------------------------------------


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Compute a batch's logits."""
    return model.eval()(**inputs(*BATCH)).logits


def answers(model: nn.Module) -> Tensor:
    """Let a model continue a batch by a few tokens."""
    return model.eval().generate(**inputs(*BATCH), **PLAIN)


def generate(
    model: nn.Module, batch: dict[str, Tensor], past_key_values: Any = None, **how: Any
) -> Any:
    """Generate a few tokens, greedily unless `how` says else, with the logits of every step."""
    torch.manual_seed(0)
    if past_key_values is not None:
        how[CACHE] = past_key_values
    how = {**PLAIN, "return_dict_in_generate": True, "output_logits": True, **how}
    return model.generate(**batch, **how)


# ---- What a Victor model computes, from the parts of the native model alone ----------------------


class Full:
    """The sequence of one prompt with its registers, nothing dropped: one entry for each token."""

    def __init__(self, prompt: str, registers: int, positions: str) -> None:
        self.kind: list[str] = []  # "text", "visual" or "register"
        self.column: list[int] = []  # among the caller's tokens; of a register: its image's last
        self.position: list[int] = []
        column = 0
        for sign in prompt:
            width = VISUAL_TOKENS if sign == "#" else 1
            self.kind += ["visual" if sign == "#" else "text"] * width
            self.column += range(column, column + width)
            self.position += range(column, column + width)
            column += width
            if sign == "#":
                self.kind += ["register"] * registers
                self.column += [column - 1] * registers
                self.position += range(column - registers, column)
        if positions == "append":
            self.position = list(range(len(self.kind)))

    def where(self, kind: str) -> Tensor:
        """Mark the entries of a kind [t]."""
        return torch.tensor([own == kind for own in self.kind])


@torch.no_grad()
def masked_logits(
    native: LlavaForConditionalGeneration,
    victor: dict[str, Tensor],
    settings: dict[str, Any],
    prompt: str,
    first: int = 0,
) -> dict[int, Tensor]:
    """Compute one prompt's logits by masking visual columns in layers >= `drop_layer`, all kept.

    Args:
        native: The unconverted model; only its own modules are called.
        victor: The `victor.` tensors of a state dict.
        settings: The `victor` section of the configuration.
        prompt: As for `ids`.
        first: Number of its first picture.

    Returns:
        Logits by column, for text and for each image's last column.
    """
    text = native.model.language_model
    full = Full(prompt, settings["registers"], settings["positions"])
    length = len(full.kind)
    states = torch.zeros(length, text.config.hidden_size)
    states[~full.where("register")] = text.embed_tokens(torch.tensor(ids(prompt)))
    if count := prompt.count("#"):
        features = native.model.get_image_features(pictures(count, first)).pooler_output
        states[full.where("visual")] = torch.cat(list(features))
        states[full.where("register")] = victor["victor.registers.weight"].repeat(count, 1)
    position = torch.tensor([full.position])
    hidden = states[None]
    rotary = text.rotary_emb(hidden, position)
    closed = torch.finfo(hidden.dtype).min
    early = torch.full((length, length), closed).triu(1)
    late = early.masked_fill(full.where("visual"), closed)
    for index, layer in enumerate(text.layers):
        mask = early if index < settings["drop_layer"] else late
        with ExitStack() as hooks:
            for hook in learned_hooks(layer, index, victor, settings, full.where("register")):
                hooks.callback(hook.remove)
            hidden = layer(
                hidden,
                attention_mask=mask[None, None],
                position_embeddings=rotary,
                position_ids=position,
                use_cache=False,
            )
    logits = native.lm_head(text.norm(hidden))[0]
    return {
        column: logits[place]  # an image's last column is written last by its last register
        for place, (kind, column) in enumerate(zip(full.kind, full.column, strict=True))
        if kind != "visual"
    }


def learned_hooks(
    layer: nn.Module,
    index: int,
    victor: dict[str, Tensor],
    settings: dict[str, Any],
    register: Tensor,
) -> Iterator[Any]:
    """Let offsets and updates, up @ down * alpha / rank, act in a layer at register rows only."""
    offset = victor.get(f"victor.offsets.{index}.weight")
    if offset is not None:
        yield hook_offset(layer, offset, register)
    for name, module in layer.named_modules():
        key = f"victor.adapters.{index}.linears.{name.replace('.', '-')}"
        if f"{key}.down" in victor:
            scale = settings["adapter"]["alpha"] / settings["adapter"]["rank"]
            yield hook_update(module, victor[f"{key}.up"] @ victor[f"{key}.down"] * scale, register)
