"""The laws: what holds for a Victor folder of any family, on any backbone.

    python -I -W error tests/modeling/laws.py PLACE ...

A place holds `source`, a tiny model, `victor`, the same model converted, with adapters and offsets,
and `pictures.safetensors`: for every picture and video what the model takes for it, and how it is
spelled. Nothing of ours is imported: the folder brings its own code.

Faults planted and caught: layer types not cut; every slice normed; a cache window that shows the
first layers; late layers behind the early mask; adapters at every row; adapters at a row of text;
no adapters in the MLP; next positions forgotten; overlay one position late; registers scaled like
embeddings; an image answers with its first register; late padding attended; a slice with another
window; registers that stay on; offsets left out; the base changed when it is saved.
"""

import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText

CLOSE = 3e-5  # of the largest value: what single precision leaves after six layers
PROMPTS = ("ab#cd", "abc", "#a#bcde", "ab##c", "#")  # a letter is a word, `#` a picture
WITH_VIDEOS = ("a%b", "#c%d", "abc", "e%#")  # and `%` a video
SIGNS = {"#": "image", "%": "video"}
ONE_SAMPLE = ("idefics3", "smolvlm")  # each row has its pictures, filled up with black ones
NEW = 6  # tokens to write
MODES = ("overlay", "append")
VERSION = re.compile(rb'"transformers_version": "[^"]+"')


class Case(NamedTuple):
    """A Victor folder as both of its models, and what it was converted from."""

    folder: Path
    victor: Any
    native: Any
    source: Any
    stored: dict[str, Tensor]
    """Tensors of `pictures.safetensors`: MODALITY.NUMBER.NAME."""

    @property
    def text(self) -> nn.Module:
        """The unconverted model's text model."""
        return self.native.get_decoder()

    @property
    def prompts(self) -> tuple[str, ...]:
        """A batch of all kinds of prompts that the family takes."""
        return WITH_VIDEOS if "video.0.spelled" in self.stored else PROMPTS


def load_case(place: Path) -> Case:
    """Load what a place holds, as a user would."""
    load = AutoModelForImageTextToText.from_pretrained
    folder = place / "victor"
    loaded = (load(folder, trust_remote_code=True), load(folder), load(place / "source"))
    stored = load_file(place / "pictures.safetensors")
    return Case(folder, *(model.eval() for model in loaded), stored)


def keep_last(make: Callable[[str], Path]) -> Callable[[str], Case]:
    """Load the cases that are made by name, one after another; of equal names only the first."""
    last: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in last:
            last.clear()
            last[name] = load_case(make(name))
        return last[name]

    return case


# ---- Prompts and states --------------------------------------------------------------------------


def spell(case: Case, prompt: str, first: int = 0) -> list[list[int]]:
    """Turn a prompt into token ids, sign by sign; pictures are numbered on from `first`."""
    left = {sign: itertools.count(first) for sign in SIGNS}
    return [
        case.stored[f"{SIGNS[sign]}.{next(left[sign])}.spelled"].tolist()
        if sign in SIGNS
        else [ord(sign) - 87]
        for sign in prompt
    ]


def inputs(case: Case, *prompts: str, first: int = 0) -> dict[str, Tensor]:
    """Batch prompts, padded on the left; pictures and videos are numbered on from `first`."""
    seen = [first + max(count_signs("".join(prompts[:place]))) for place in range(len(prompts))]
    spelled = (spell(case, *one) for one in zip(prompts, seen, strict=True))
    rows = [list(itertools.chain(*signs)) for signs in spelled]
    longest = max(map(len, rows))
    pads = [longest - len(row) for row in rows]
    ids = [[0] * pad + row for pad, row in zip(pads, rows, strict=True)]
    mask = [[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)]
    made = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return made | pictures(case, prompts, seen)


def count_signs(prompt: str) -> list[int]:
    """Count pictures and videos."""
    return [prompt.count(sign) for sign in SIGNS]


def pictures(case: Case, prompts: tuple[str, ...], seen: list[int]) -> dict[str, Tensor]:
    """Join what the model takes for the pictures and videos of prompts, numbered from `seen`."""
    rows = [stored(case, *one) for one in zip(prompts, seen, strict=True)]
    parts: dict[str, list[Tensor]] = {}
    for row in rows:
        for name, values in row.items():
            parts.setdefault(name, []).append(values)
    if not parts or case.native.config.model_type not in ONE_SAMPLE:
        return {name: torch.cat(values) for name, values in parts.items()}
    (empty,) = (value.new_zeros(0, *value.shape[1:]) for value in parts["pixel_values"][:1])
    own = [row.get("pixel_values", empty) for row in rows]
    return {"pixel_values": nn.utils.rnn.pad_sequence(own, batch_first=True)}


def stored(case: Case, prompt: str, first: int) -> dict[str, Tensor]:
    """Join what the model takes for the pictures and videos of one prompt."""
    parts: dict[str, list[Tensor]] = {}
    for sign, modality in SIGNS.items():
        for number in range(first, first + prompt.count(sign)):
            prefix = f"{modality}.{number}."
            for key, value in case.stored.items():
                if key.startswith(prefix) and not key.endswith(".spelled"):
                    parts.setdefault(key.removeprefix(prefix), []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def each(case: Case, *prompts: str) -> list[dict[str, Tensor]]:
    """Make the inputs of every prompt alone, with the pictures that it has in the batch of all."""
    seen = [max(count_signs("".join(prompts[:place]))) for place in range(len(prompts))]
    return [inputs(case, prompt, first=first) for prompt, first in zip(prompts, seen, strict=True)]


def assert_close(found: Tensor, expected: Tensor, tolerance: float = CLOSE) -> None:
    """Compare two tensors; the tolerance is a share of the largest expected value."""
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@contextmanager
def positions(case: Case, mode: str) -> Iterator[None]:
    """Number registers and text in the other way for a while."""
    before, case.victor.victor.positions = case.victor.victor.positions, mode
    try:
        yield
    finally:
        case.victor.victor.positions = before


def generate(case: Case, batch: dict[str, Tensor], **how: Any) -> Any:
    """Let the Victor model write a few words, none of which ends its answer or is an image."""
    how |= {"max_new_tokens": NEW, "do_sample": False, "output_logits": True}
    how |= {"suppress_tokens": [2, *placeholders(case)]}
    return case.victor.generate(**batch, **how, return_dict_in_generate=True)


# ---- The same logits from the unconverted model: nothing is dropped, columns are closed ----------


def placeholders(case: Case) -> list[int]:
    """List the token ids of placeholders."""
    names = [f"{modality}_token_id" for modality in SIGNS.values()]
    return [
        getattr(case.native.config, name) for name in names if hasattr(case.native.config, name)
    ]


def ends(case: Case, prompt: str, first: int = 0) -> list[int]:
    """List the columns that registers follow: each picture's last, or the last of every run."""
    config = case.native.config
    runs = [getattr(config, f"{modality}_token_id") for modality in case.victor.by_runs]
    found, tokens = [], []
    for own in spell(case, prompt, first):
        visual = [place for place, token in enumerate(own) if token in placeholders(case)]
        if visual and own[visual[0]] not in runs:
            found.append(len(tokens) + visual[-1])
        tokens += own
    found += [
        column
        for column, token in enumerate(tokens)
        if token in runs and tokens[column + 1 : column + 2] != [token]
    ]
    return sorted(found)


def places(case: Case, prompt: str, mode: str) -> tuple[list[str], list[int], list[int]]:
    """List what stands where when nothing is dropped: kinds, the caller's columns, positions."""
    count = case.victor.victor.registers.weight.shape[0]
    kinds, columns, numbers = [], [], []
    last = ends(case, prompt)
    for column, token in enumerate(itertools.chain(*spell(case, prompt))):
        kinds.append("visual" if token in placeholders(case) else "text")
        columns.append(column)
        numbers.append(column)
        if column in last:
            kinds += ["register"] * count
            columns += [column] * count
            numbers += range(column - count + 1, column + 1)
    return kinds, columns, list(range(len(kinds))) if mode == "append" else numbers


def embeddings(case: Case, prompt: str, kinds: list[str]) -> Tensor:
    """Put what the unconverted text model is given and registers in a row [1, t, d]."""
    given = []

    def catch(text: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append(named["inputs_embeds"][0])

    hook = case.text.register_forward_pre_hook(catch, with_kwargs=True)
    case.native(**inputs(case, prompt))
    hook.remove()
    is_register = torch.tensor([kind == "register" for kind in kinds])
    states = given[0].new_zeros(len(kinds), given[0].shape[1])
    states[~is_register] = given[0]
    registers = case.victor.victor.registers.weight
    states[is_register] = registers.repeat(int(is_register.sum()) // len(registers), 1)
    return states[None]


def closed(seen: Tensor, window: int | None) -> Tensor:
    """Make a layer's mask over the tokens it sees; its window counts those alone [1, 1, t, t]."""
    rank = seen.cumsum(0)
    back = rank[:, None] - rank[None, :]
    open_ = torch.ones_like(back, dtype=torch.bool).tril() & seen[None, :]
    if window is not None:
        open_ &= back < window
    open_ |= torch.eye(len(seen), dtype=torch.bool)  # a row of nothing would be NaN
    return torch.zeros(back.shape).masked_fill(~open_, torch.finfo(torch.float32).min)[None, None]


def window_of(config: Any, index: int) -> int | None:
    """Tell how far back a layer sees, None for everything."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    sliding = kinds[index] == "sliding_attention"
    return getattr(config, "sliding_window", None) if sliding else None


def hook_mask(layer: nn.Module, mask: Tensor) -> Any:
    """Give a layer another mask than the one that the text model made."""

    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return given, {**named, "attention_mask": mask}

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def hook_update(linear: nn.Module, update: Tensor, rows: Tensor) -> Any:
    """Add `update` @ x to a Linear's output, at some rows only."""

    def hook(module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        return output + functional.linear(given[0], update) * rows[:, None]

    return linear.register_forward_hook(hook)


def hook_offset(layer: nn.Module, offset: Tensor, rows: Tensor) -> Any:
    """Add an offset [r, d] to the registers of every image before a layer."""

    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> Any:
        hidden = given[0].clone()
        hidden[:, rows] += offset.repeat(int(rows.sum()) // len(offset), 1)
        return hidden, *given[1:]

    return layer.register_forward_pre_hook(hook)


def offsets(case: Case) -> dict[int, Tensor]:
    """Read what is added at the registers before a layer, by the layer's number."""
    stored = load_file(case.folder / "victor.safetensors")
    return {int(name.split(".")[2]): stored[name] for name in stored if ".offsets." in name}


def updates(case: Case, index: int) -> Iterator[tuple[str, Tensor]]:
    """Read a layer's adapters from the file: the Linear's name, and what is added to its weight."""
    adapter = case.victor.config.victor["adapter"]
    stored = load_file(case.folder / "victor.safetensors")
    prefix = f"victor.adapters.{index}.linears."
    for name, down in stored.items():
        if name.startswith(prefix) and name.endswith(".down"):
            up = stored[name.removesuffix("down") + "up"]
            linear = name.removeprefix(prefix).removesuffix(".down").replace("-", ".")
            yield linear, up @ down * (adapter["alpha"] / adapter["rank"])


def expected_logits(case: Case, prompt: str, mode: str) -> dict[int, Tensor]:
    """Compute a prompt's logits by column, for text and for each image's last column."""
    text, drop_layer = case.text, case.victor.config.victor["drop_layer"]
    learned = offsets(case)
    assert set(learned) == set(range(1, drop_layer))
    kinds, columns, numbers = places(case, prompt, mode)
    stays = torch.tensor([kind != "visual" for kind in kinds])
    registers = torch.tensor([kind == "register" for kind in kinds])
    states = embeddings(case, prompt, kinds)
    with ExitStack() as hooks:
        for index, layer in enumerate(text.layers):
            seen = stays if index >= drop_layer else torch.ones_like(stays)
            mask = hook_mask(layer, closed(seen, window_of(text.config, index)))
            hooks.callback(mask.remove)
            if index in learned:
                hooks.callback(hook_offset(layer, learned[index], registers).remove)
            for name, update in updates(case, index):
                hook = hook_update(layer.get_submodule(name), update, registers)
                hooks.callback(hook.remove)
        hidden = text(
            inputs_embeds=states,
            position_ids=torch.tensor([numbers]),
            attention_mask=torch.ones(1, len(kinds)),
            use_cache=False,
        ).last_hidden_state
    logits = case.native.lm_head(hidden)[0]
    return {
        column: logits[place]  # an image's last column is written last by its last register
        for place, (kind, column) in enumerate(zip(kinds, columns, strict=True))
        if kind != "visual"
    }


# ---- The laws ------------------------------------------------------------------------------------


@torch.no_grad()
def the_folder_is_its_source_bit_for_bit(case: Case) -> None:
    """Without trust, stock transformers loads what was converted."""
    ours, source = case.native.state_dict(), case.source.state_dict()
    assert type(case.native) is type(case.source)
    assert ours.keys() == source.keys()
    assert all(torch.equal(ours[name], source[name]) for name in source)
    batch = inputs(case, *case.prompts)
    assert torch.equal(case.native(**batch).logits, case.source(**batch).logits)


@torch.no_grad()
def two_slices_are_the_whole(case: Case) -> None:
    """Cut anywhere, the layers compute what the backbone's own forward does."""
    native, text = case.text, case.victor.get_decoder()
    count, width = len(text.layers), text.config.hidden_size
    hidden = torch.randn(2, 21, width, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, :3] = False
    how = {"attention_mask": mask, "use_cache": False}
    whole = native(inputs_embeds=hidden, **how).last_hidden_state
    for cut in range(1, count):
        pieces = hidden
        for ends in ((0, cut), (cut, count)):
            pieces = text.layer_slice(*ends)(inputs_embeds=pieces, **how).last_hidden_state
        assert torch.equal(pieces[mask], whole[mask]), f"cut at {cut}"


@torch.no_grad()
def without_images_it_is_the_base_bit_for_bit(case: Case) -> None:
    """Where nothing is dropped, nothing changes, adapters or not."""
    batch = inputs(case, "abcdefghijk", "lm")
    for use_cache in (True, False):
        ours = case.victor(**batch, use_cache=use_cache).logits
        assert torch.equal(ours, case.native(**batch, use_cache=use_cache).logits)


@torch.no_grad()
def switched_off_it_is_the_base_bit_for_bit(case: Case) -> None:
    """`registers_off` gives the unconverted model, and ends."""
    batch = inputs(case, *case.prompts)
    before = case.victor(**batch).logits
    with case.victor.registers_off():
        off = case.victor(**batch).logits
    assert torch.equal(off, case.native(**batch).logits)
    assert torch.equal(case.victor(**batch).logits, before)
    assert not torch.allclose(off, before, atol=1e-2)


@torch.no_grad()
def dropping_is_masking(case: Case) -> None:
    """The unconverted model says the same where it cannot see what was dropped."""
    for mode in MODES:
        for prompt in (
            "ab#cd",
            "a##bc#d",
            "#",
            *([] if case.prompts is PROMPTS else ["a%b#c", "%"]),
        ):
            expected = expected_logits(case, prompt, mode)
            with positions(case, mode):
                found = case.victor(**inputs(case, prompt)).logits[0]
            assert_close(found[list(expected)], torch.stack(list(expected.values())))


@torch.no_grad()
def a_padded_row_is_its_prompt_alone(case: Case) -> None:
    """A batch is so many prompts, whatever stands beside them."""
    for mode in MODES:
        with positions(case, mode):
            batch = inputs(case, *case.prompts)
            together = case.victor(**batch).logits
            for row, alone in enumerate(each(case, *case.prompts)):
                own = together[row, batch["attention_mask"][row].bool()]
                assert_close(own, case.victor(**alone).logits[0])


@torch.no_grad()
def generating_with_the_cache_is_recomputing(case: Case) -> None:
    """Keys and values that were kept change nothing, beyond a window's length too."""
    for mode in MODES:
        with positions(case, mode):
            batch = inputs(case, *case.prompts)
            kept, again = (generate(case, batch, use_cache=cached) for cached in (True, False))
        assert torch.equal(kept.sequences, again.sequences)
        for step, expected in zip(kept.logits, again.logits, strict=True):
            assert_close(step, expected)


@torch.no_grad()
def a_prompt_is_answered_alone_as_in_a_batch(case: Case) -> None:
    """Greedy answers do not depend on what stands beside a prompt."""
    together = generate(case, inputs(case, *case.prompts)).sequences[:, -NEW:]
    alone = [generate(case, one).sequences[:, -NEW:] for one in each(case, *case.prompts)]
    assert torch.equal(together, torch.cat(alone))


@torch.no_grad()
def adapters_act_at_registers_only(case: Case) -> None:
    """Every adapted Linear gives other numbers at the registers, and its own everywhere else."""
    changed = []

    def compare(linear: nn.Linear, given: tuple[Tensor], output: Tensor) -> None:
        plain = functional.linear(given[0], linear.weight, linear.bias)
        changed.append(int((plain != output).any(dim=-1).sum()))

    with ExitStack() as hooks:
        for index, layer in enumerate(case.victor.get_decoder().layers):
            modules = dict(layer.named_modules())
            linears = {name for name, part in modules.items() if isinstance(part, nn.Linear)}
            assert {name for name, _ in updates(case, index)} == linears
            for name in linears:
                hooks.callback(modules[name].register_forward_hook(compare).remove)
        asked = ("ab#cd", "#e##f")
        case.victor(**inputs(case, *asked))
    images = len(ends(case, asked[0])) + len(ends(case, asked[1], first=1))
    assert set(changed) == {images * case.victor.victor.registers.weight.shape[0]}


def saved_it_is_the_same_folder(case: Case) -> None:
    """A model that was loaded is saved byte for byte, but for the version that writes it."""
    with tempfile.TemporaryDirectory() as place:
        case.victor.save_pretrained(place)
        saved = sorted(Path(place).iterdir())
        assert {"config.json", "modeling_victor.py"} <= {file.name for file in saved}
        for file in saved:
            ours, first = (
                VERSION.sub(b"", one.read_bytes()) for one in (file, case.folder / file.name)
            )
            assert ours == first, file.name


LAWS = (
    the_folder_is_its_source_bit_for_bit,
    two_slices_are_the_whole,
    without_images_it_is_the_base_bit_for_bit,
    switched_off_it_is_the_base_bit_for_bit,
    dropping_is_masking,
    a_padded_row_is_its_prompt_alone,
    generating_with_the_cache_is_recomputing,
    a_prompt_is_answered_alone_as_in_a_batch,
    adapters_act_at_registers_only,
    saved_it_is_the_same_folder,
)


def main(places: list[str]) -> None:
    """Try every law in every place; the first that does not hold ends it."""
    for place in places:
        case = load_case(Path(place))
        assert type(case.victor).__module__.startswith("transformers_modules.")
        for law in LAWS:
            law(case)
            sys.stdout.write(f"{Path(place).name}: {law.__name__}\n")


if __name__ == "__main__":
    sys.modules["victorctl"] = None  # as if it had never been installed
    main(sys.argv[1:])
