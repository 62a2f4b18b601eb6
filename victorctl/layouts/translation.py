"""A model in an original layout as one in transformers' layout: small files now, weights later."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from victorctl.checkpoint import read_config
from victorctl.errors import VictorError
from victorctl.layouts import files, lora, names, prompts, streams
from victorctl.layouts.configs import translated
from victorctl.layouts.recognise import Kind, check_supported, kind_of
from victorctl.layouts.streams import Part, Weights
from victorctl.layouts.towers import (
    Tower,
    check_count,
    check_is_named,
    given_tower,
    named_tower,
)
from victorctl.sections import ConvertSection
from victorctl.sources import ADAPTER, BASE_WEIGHTS, Source, fetch_weights, open_source, read_json

TERMS = ("LICENSE*", "NOTICE*")
TIED = ("gemma", "qwen")  # of which some sizes are
WHOSE = {"original-lora": (ADAPTER, "base_model_name_or_path"), "original-projector": (
    "config.json", "_name_or_path")}  # fmt: skip


class Staging:
    """A folder that goes with this object."""

    def __init__(self) -> None:
        self.folder = Path(mkdtemp(prefix="victorctl-"))
        finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Translation:
    """What an original becomes."""

    kind: Kind
    staged: Source
    """Its small files in transformers' layout, in a folder that goes with this object."""
    original: Source
    base: Source | None
    """Language model that it belongs to, unless it holds one."""
    tower: Source | None
    """Vision tower that was given."""
    config: dict[str, Any]
    """`config.json` in transformers' layout."""
    vocab: int
    """Rows of the original's vocabulary."""
    pad: bool
    """Whether pictures are padded to squares."""
    remarks: list[str]
    keep: Staging

    @property
    def has_tower(self) -> bool:
        """Whether the weights, which are here, hold a vision tower."""
        return streams.has_tower(list(self._parts()))

    @property
    def sources(self) -> list[Source]:
        """Everything that is read."""
        return [one for one in (self.original, self.base, self.tower) if one is not None]

    @property
    def is_here(self) -> bool:
        """Whether nothing need be fetched."""
        return all(source.is_here for source in self.sources)

    def weights(self) -> Weights:
        """Fetch the weights if need be, and plan what becomes of them, from headers alone.

        Raises:
            VictorError: If a file is not whole, a tensor is missing or has no place, or there is no
                vision tower.
        """
        adapter, parts = self._adapter(), list(self._parts())
        if not streams.has_tower(parts):
            parts += self._parts_of_tower()
        found = streams.plan(parts, adapter, self.config, self.vocab)
        if names.HEAD not in {tensor.name for tensor in found.tensors}:
            self._tie()  # if that may be; without it, the head is missing
        streams.check_whole(found, self.config, self.vocab)
        return found

    def numbers(self) -> Iterator[streams.Planned]:
        """List what becomes of the weights that there are, whole or not."""
        yield from streams.plan(list(self._parts()), None, self.config, self.vocab).tensors

    def _adapter(self) -> lora.Adapter | None:
        if self.kind != "original-lora":
            return None
        fetch_weights(self.original, files.ADAPTERS)
        return lora.read_adapter(self.original.folder)

    def _tie(self) -> None:
        """Let the embeddings be the head, too, unless the configuration says that they are not.

        That of a Qwen or Gemma says so in vain: LLaVA's training wrote it for models that are tied.
        """
        if read_config(self.original.folder).get("tie_word_embeddings") is False:
            if not self.config["text_config"]["model_type"].startswith(TIED):
                return
            self.remarks.append(
                "the embeddings are the head, too: the weights hold none, though config.json says "
                "tie_word_embeddings false"
            )
        self.config["tie_word_embeddings"] = True
        self.config["text_config"]["tie_word_embeddings"] = True
        write_json(self.staged.folder / "config.json", self.config)

    def _parts(self) -> Iterator[Part]:
        rename = names.of_model(self.config)
        if self.kind == "original-projector":
            yield self._small(files.PROJECTOR, rename)
        if self.kind == "original-lora":
            part = self._small(files.TRAINABLES, rename)
            wrapped = names.without_wrapper([entry.name for entry in files.entries(part.path)])
            yield Part(part.path, part.label, lambda name: rename(wrapped[name]), first=True)
        model = self.base or self.original
        for path in _whole(model):
            label = path.name if model is self.original else f"{model.name}/{path.name}"
            yield Part(path, label, rename)

    def _small(self, name: str, rename: names.Rename) -> Part:
        fetch_weights(self.original, [name])
        return Part(self.original.folder / name, name, rename, first=True)

    def _parts_of_tower(self) -> Iterator[Part]:
        if self.tower is None:
            named = read_config(self.original.folder).get("mm_vision_tower")
            raise VictorError(
                f"{self.original.name}: its weights hold no vision tower; it was trained with "
                f"{named}",
                fix="add --vision-tower SOURCE with that one",
            )
        rename = names.of_tower(self.config)
        for path in _whole(self.tower):
            yield Part(path, f"{self.tower.name}/{path.name}", rename)


def _whole(source: Source) -> list[Path]:
    """Fetch and list the weight files of a whole model.

    Raises:
        VictorError: If there are none.
    """
    promised = files.wanted(source.folder)
    for tried in [promised] if promised else ([BASE_WEIGHTS], [files.BIN_WEIGHTS]):
        fetch_weights(source, tried)
        if found := files.find(source.folder):
            return found
    raise VictorError(
        f"{source.folder}: no weights, neither *.safetensors nor pytorch_model*.bin",
        fix="download the weights into the folder",
    )


def translate(source: Source, settings: ConvertSection) -> Translation:
    """Translate the small files of an original, and find what belongs to it.

    Args:
        source: Its folder, or Hub id.
        settings: Say where vision tower and language model are, and what to do with pictures.

    Raises:
        VictorError: If it has no translation, or something that belongs to it is not found.
    """
    config = read_config(source.folder)
    check_supported(config, source.name)
    kind = kind_of(source)
    if kind == "original-lora":
        lora.check_plain_lora(source.folder)  # before anything is fetched
    base = _base(source, kind, settings.base)
    given, tower = _tower(source, config, settings.vision_tower)
    made = translated(config, tower, source.name)
    pad = _pads(config, made, settings, source.name)
    if length := config.get("tokenizer_model_max_length"):
        check_count(config, "tokenizer_model_max_length", source.name)
    tokenizer = prompts.load_tokenizer(_with_tokenizer(source, base), made, length)
    vocab = made["text_config"]["vocab_size"]
    made = prompts.with_tokens(made, tokenizer)
    keep = Staging()
    folder = keep.folder
    template = prompts.write_processor(folder, made, tower, tokenizer, pad=pad)
    _write(folder, source, made)
    remarks = [*_remarks(config, made, pad=pad), f"chat template: {template}"]
    staged = Source(folder, source.name, source.commit)
    return Translation(kind, staged, source, base, given, made, vocab, pad, remarks, keep)


def _tower(
    source: Source, config: Mapping[str, Any], given: str | None
) -> tuple[Source | None, Tower]:
    """Find the vision tower that is given, or else named; a folder of the model's own user, too."""
    name = str(config.get("mm_vision_tower"))
    if given is None and source.is_here and Path(name).is_dir():
        given = name
    if given is None:
        return None, named_tower(name, f"{source.name}: config.json")
    opened = open_source(given)
    tower = given_tower(opened)
    check_is_named(tower, name, opened)
    return opened, tower


def _base(source: Source, kind: Kind, given: str | None) -> Source | None:
    """Open the language model that an update or a projector belongs to."""
    if kind == "original":
        if given:
            raise VictorError(
                f"--base {given}: {source.name} holds a language model of its own",
                fix="leave --base out",
            )
        return None
    if given:
        return open_source(given)
    file, key = WHOSE[kind]
    named = str((read_json(source.folder / file) or {}).get(key) or "")
    published = source.commit is not None  # by somebody else, who may not choose folders here
    if not named or (published and Path(named).expanduser().exists()):
        problem = f"{source.name}: {file} names no language model that can be fetched ({named!r})"
        raise VictorError(problem, fix="add --base SOURCE with the one that it was trained on")
    try:
        return open_source(named)
    except VictorError as error:
        raise VictorError(
            f"{source.name}: its language model, {key} in {file}, is not found: {error.problem}",
            fix="add --base SOURCE with the one that it was trained on",
        ) from error


def _with_tokenizer(source: Source, base: Source | None) -> Path:
    own = any(any(source.folder.glob(pattern)) for pattern in prompts.TOKENIZERS)
    return source.folder if own or base is None else base.folder


def _pads(
    config: Mapping[str, Any], made: Mapping[str, Any], settings: ConvertSection, source_name: str
) -> bool:
    if made["model_type"] != "llava":
        if settings.image_aspect == "pad":
            raise VictorError(
                f"--image-aspect pad: {source_name} cuts pictures into tiles and pads them anyway",
                fix="leave --image-aspect out",
            )
        return False
    if settings.image_aspect:
        return settings.image_aspect == "pad"
    return config.get("image_aspect_ratio") == "pad"


def _remarks(config: Mapping[str, Any], made: Mapping[str, Any], *, pad: bool) -> Iterator[str]:
    """Say what was chosen about pictures."""
    aspect = config.get("image_aspect_ratio")
    if pad:
        as_original = ", as in the original (or --image-aspect keep)" if aspect == "pad" else ""
        yield f"pictures are padded to squares{as_original}"
    elif aspect == "pad":
        yield "pictures are cropped, not padded to squares as in the original (--image-aspect pad)"
    if made["model_type"] == "llava" and "anyres" in str(aspect):
        yield "pictures are seen whole, not in tiles, as in llava-hf's copies of such models"


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a configuration."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write(folder: Path, source: Source, config: Mapping[str, Any]) -> None:
    """Write the configurations, and copy the terms of use."""
    text = config["text_config"]
    ids = {
        key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in text
    }
    generation = read_json(source.folder / "generation_config.json") or ids
    generation.pop("_from_model_config", None)
    if "pad_token_id" in config:
        generation["pad_token_id"] = config["pad_token_id"]
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        write_json(folder / name, content)
    for pattern in TERMS:
        for file in source.folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
