"""Folders that are damaged or lie, each made from a sound one by one twist."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Twist = Callable[[Path], Any]
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.language_model.embed_tokens.weight"  # ends so in every layout


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("boom").touch, ()


def shards(folder: Path) -> list[Path]:
    """List the weight files."""
    return sorted(folder.glob("model-*.safetensors"))


def header(change: Callable[[dict[str, Any]], Any]) -> Twist:
    """Change the header of the first shard, its payload left as it is."""

    def twist(folder: Path) -> None:
        file = shards(folder)[0]
        data = file.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + length])
        text = json.dumps(change(content) or content).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return twist


def entry(**changes: Any) -> Twist:
    """Change the header's entry of one tensor."""

    def change(content: dict[str, Any]) -> None:
        name = max(key for key in content if key != "__metadata__")
        content[name] |= changes

    return header(change)


def index(change: Callable[[dict[str, Any]], Any]) -> Twist:
    """Change the index."""

    def twist(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(change(content) or content))

    return twist


def mapped(change: Callable[[dict[str, str]], Any]) -> Twist:
    """Change the index's map of tensors to files."""
    return index(lambda content: change(content["weight_map"]) and None)


def named(file: str) -> Twist:
    """Let the index say that a tensor is in another file."""

    def change(names: dict[str, str]) -> None:
        names[min(names)] = file

    return mapped(change)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Twist:
    """Change the tensors of the first shard, and its index with them."""

    def twist(folder: Path) -> None:
        file = shards(folder)[0]
        state = load_file(file)
        state = change(state) or state
        save_file(state, file, metadata={"format": "pt"})
        content = json.loads((folder / INDEX).read_text())
        names = content["weight_map"]
        for name in [name for name, where in names.items() if where == file.name]:
            del names[name]
        names |= dict.fromkeys(state, file.name)
        (folder / INDEX).write_text(json.dumps(content))

    return twist


def config(**changes: Any) -> Twist:
    """Change `config.json`."""

    def twist(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return twist


def part_of_config(part: str) -> Callable[..., Twist]:
    """Make what changes a part of `config.json`."""

    def changing(**changes: Any) -> Twist:
        def twist(folder: Path) -> None:
            content = json.loads((folder / "config.json").read_text())
            content[part] |= changes
            (folder / "config.json").write_text(json.dumps(content))

        return twist

    return changing


text_config, vision_config = part_of_config("text_config"), part_of_config("vision_config")


def write(name: str, data: bytes) -> Twist:
    """Put a file in place of another."""
    return lambda folder: (folder / name).write_bytes(data)


def first(do: Callable[[Path], Any]) -> Twist:
    """Do something to the first shard."""
    return lambda folder: do(shards(folder)[0])


def only_pickles(folder: Path) -> None:
    """Leave pickles alone, which do something when they are opened."""
    for file in (*shards(folder), folder / INDEX):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def scaled(state: dict[str, torch.Tensor], value: float) -> None:
    """Put one number somewhere into the last tensor."""
    state[max(state)].view(-1)[-1] = value


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give every tensor another name."""
    return {f"other.{name}": value for name, value in state.items()}


def without_one(state: dict[str, torch.Tensor]) -> None:
    """Take a tensor away."""
    del state[max(state)]


def one_more(state: dict[str, torch.Tensor]) -> None:
    """Add a tensor that nobody asks for."""
    state["model.language_model.extra.weight"] = torch.ones(2)


def transposed(state: dict[str, torch.Tensor]) -> None:
    """Turn a matrix that is not square."""
    name = max(name for name, value in state.items() if len(set(value.shape)) == 2)
    state[name] = state[name].T.contiguous()


def integers(state: dict[str, torch.Tensor]) -> None:
    """Store numbers of another kind."""
    state[max(state)] = state[max(state)].to(torch.int32)


def too_long(file: Path) -> None:
    """Add bytes that belong to nothing."""
    file.write_bytes(file.read_bytes() + b"tail")


def cut(file: Path, count: int) -> None:
    """Take bytes off the end."""
    file.write_bytes(file.read_bytes()[:-count])


def leads_nowhere(file: Path) -> None:
    """Leave a link in a file's place."""
    file.unlink()
    file.symlink_to("/nowhere")


def all_at_the_start(content: dict[str, Any]) -> None:
    """Let all tensors be the same bytes."""
    for name in content.keys() - {"__metadata__"}:
        content[name]["data_offsets"] = [0, 8]


def swapped(names: dict[str, str]) -> None:
    """Say of a tensor that it is in another shard that there is."""
    names[min(names)] = max(set(names.values()) - {names[min(names)]})


def haunted(names: dict[str, str]) -> None:
    """Promise a tensor that is nowhere."""
    names["ghost"] = max(names.values())


HOSTILE: dict[str, tuple[Twist, str]] = {
    # files
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config cut": (first(lambda p: cut(p.parent / "config.json", 9)), "config.json: not JSON"),
    "config of bytes": (write("config.json", b"\xff\xfe\x00"), "config.json: not JSON"),
    "config a list": (write("config.json", b"[1]"), "config.json: not a JSON object"),
    "no index": (lambda f: (f / INDEX).unlink(), "index.json is missing"),
    "no shard": (first(Path.unlink), "is missing, and model.safetensors.index.json names it"),
    "no shards": (lambda f: [p.unlink() for p in shards(f)], "is missing, and .* names it"),
    "shard a folder": (first(lambda p: (p.unlink(), p.mkdir())), "is missing, and .* names it"),
    "link to nothing": (first(leads_nowhere), "a link to a file"),
    "pickles alone": (only_pickles, "no weights but pytorch_model.bin, a pickle"),
    "an adapter": (write("adapter_config.json", b"{}"), "an adapter of PEFT"),
    "generation cut": (write("generation_config.json", b'{"a"'), "generation_config.json: not JS"),
    # a shard's header
    "empty shard": (first(lambda p: p.write_bytes(b"")), "truncated within its header"),
    "seven bytes": (first(lambda p: p.write_bytes(b"1234567")), "truncated within its header"),
    "LFS pointer": (first(lambda p: p.write_bytes(b"version https://git-lfs")), "Git LFS pointer"),
    "a pickle inside": (
        first(lambda p: p.write_bytes(pickle.dumps(Bomb()))),
        "truncated within its header|not a safetensors file",
    ),
    "cut in the header": (first(lambda p: p.write_bytes(p.read_bytes()[:40])), "truncated within"),
    "endless header": (first(lambda p: p.write_bytes(b"\xff" * 64)), "not a safetensors file"),
    "header no JSON": (
        first(lambda p: p.write_bytes(struct.pack("<Q", 4) + b"{{{{")),
        "not a safetensors file",
    ),
    "header a list": (header(lambda c: [1]), "not a safetensors file"),
    "header of numbers": (header(lambda c: dict.fromkeys(c, 1)), "not a safetensors file"),
    "negative start": (entry(data_offsets=[-8, 8]), "gaps|not a safetensors"),
    "backwards": (entry(data_offsets=[64, 0]), "gaps|not a safetensors"),
    "huge offsets": (entry(data_offsets=[0, 1 << 62]), r"in \d+ bytes"),
    "offsets of words": (entry(data_offsets=["a", "b"]), "not a safetensors file"),
    "offsets with a point": (entry(data_offsets=[0.0, 8.0]), "sizes that are no whole numbers"),
    "a shape with a point": (entry(shape=[2.0]), "sizes that are no whole numbers"),
    "brackets without end": (
        first(lambda p: p.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)),
        "not a safetensors file",
    ),
    "one offset": (entry(data_offsets=[0]), "not a safetensors file"),
    "overlap": (header(all_at_the_start), "gaps|too long|not a safetensors"),
    "negative shape": (entry(shape=[-1, -32]), r"\(-1, -32\) of F32 in \d+ bytes"),
    "huge shape": (entry(shape=[1 << 40, 1 << 40]), r"of F32 in \d+ bytes"),
    "shape of words": (entry(shape=["a"]), "not a safetensors file"),
    "other shape": (entry(shape=[3]), r"\(3,\) of F32 in \d+ bytes"),
    "unknown type": (entry(dtype="Q7"), "not a safetensors file .*Q7"),
    "wider type": (entry(dtype="F64"), r"of F64 in \d+ bytes"),
    "no type": (entry(dtype=None), "not a safetensors file"),
    # its payload
    "cut by a byte": (first(lambda p: cut(p, 1)), "truncated"),
    "bytes too many": (first(too_long), "too long"),
    "NaN": (tensors(lambda s: scaled(s, float("nan"))), "NaN or infinity"),
    "infinity": (tensors(lambda s: scaled(s, float("-inf"))), "NaN or infinity"),
    # tensors
    "missing": (tensors(without_one), "1 missing tensors, such as model.language_model"),
    "one more": (tensors(one_more), "1 unexpected tensors, such as .*extra"),
    "renamed": (tensors(renamed), r"\d+ missing tensors"),
    "transposed": (tensors(transposed), "1 mismatched tensors"),
    "re-typed": (tensors(integers), "holds I32, not floating-point numbers"),
    "twice": (
        lambda f: save_file(load_file(shards(f)[0]), shards(f)[1], metadata={"format": "pt"}),
        "in no shard|the index says",
    ),
    # the index
    "index no JSON": (write(INDEX, b"{"), "index.json: not JSON"),
    "index a list": (write(INDEX, b"[]"), "index.json: not a JSON object"),
    "no map": (index(lambda c: c.pop("weight_map") and None), "its weight_map names no files"),
    "map of numbers": (index(lambda c: c | {"weight_map": {"a": 1}}), "weight_map names no files"),
    "empty map": (index(lambda c: c | {"weight_map": {}}), "missing|no weights|names no"),
    "up and out": (named("../model.safetensors"), "lies outside of the folder"),
    "absolute": (named("/etc/passwd"), "lies outside of the folder"),
    "backslashes": (named("..\\model.safetensors"), "lies outside of the folder"),
    "another kind": (named("model.bin"), "is no safetensors file"),
    "our own name": (named("victor.safetensors"), "the name that registers are kept under"),
    "a tensor in the wrong shard": (mapped(swapped), "is in model-.*, and the index says model-"),
    "a tensor of nowhere": (mapped(haunted), "in no shard, such as ghost"),
    # the configuration
    "no type of model": (config(model_type=None), "names no model_type"),
    "another model": (config(model_type="bert"), "is of no family that can be converted"),
    "no text model": (config(text_config=None), "config.json lacks text_config"),
    "another file of weights": (config(transformers_weights="x.bin"), "transformers_weights names"),
    "quantised": (config(quantization_config={"quant_method": "awq"}), "quantised"),
    "one layer": (text_config(num_hidden_layers=1), "1 layers"),
    "more layers": (text_config(num_hidden_layers=9), "have 6 layers .*, and config.json says 9"),
    "negative layers": (text_config(num_hidden_layers=-3), "-3 layers, 32 wide"),
    "huge layers": (text_config(num_hidden_layers=10**9), "config.json says 1000000000"),
    "no width": (text_config(hidden_size=0), "6 layers, 0 wide"),
    "words for a width": (text_config(hidden_size="wide"), "cannot read it"),
    "another width": (text_config(hidden_size=64), "mismatched|wide"),
    "a format that is none": (config(dtype="float99"), "cannot read it|names no"),
    "a list for a model": (config(model_type=["llava"]), "names no model_type"),
    "an unknown activation": (text_config(hidden_act="foo"), "cannot read it .*foo"),
    "an unknown projector": (config(projector_hidden_act="foo"), "cannot read it .*foo"),
    "a layer of nowhere": (config(vision_feature_layer=-20), "cannot read it"),
    "pictures of no token": (config(image_token_index=-5), "the token of pictures, -5, is none"),
    "pictures past the end": (config(image_token_index=99_999), "the token of pictures, 99999, is"),
    "no patches": (vision_config(patch_size=0), "cannot read it"),
    "negative pictures": (vision_config(image_size=-112), "cannot read it"),
    "huge pictures": (vision_config(image_size=10**6), "cannot read it|1 mismatched"),
    "a tokenizer of nothing": (write("tokenizer.json", b"{}"), "no processor that transformers"),
}
"""Name, twist, and what the refusal says."""
