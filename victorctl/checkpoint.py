"""Model folders: recognise, check, copy and load them."""

import fnmatch
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from victorctl import modeling_victor, weights
from victorctl.errors import VictorError
from victorctl.families import family_of
from victorctl.modeling_victor import VictorMixin
from victorctl.recipe import Run
from victorctl.runtime import attention, resolve, say
from victorctl.sources import (
    ADAPTER,
    BASE_INDEX,
    BASE_WEIGHTS,
    LINEAGE,
    SMALL_FILES,
    read_json,
)

CODE = Path(modeling_victor.__file__)
PACKAGES = ("num2words", "torchvision")  # that processors need, and the extra `video` brings
UNUSABLE = (  # what transformers and torch raise for values that they make nothing of
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
    *(ValueError, StrictDataclassError),
)
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
USED = (*SMALL_FILES, LINEAGE, BASE_INDEX, "*.safetensors")


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        VictorError: If the folder has none, or it is no JSON object.
    """
    content = read_json(folder / "config.json")
    if not folder.is_dir():
        fix = f"give a folder that is there, or write it: victorctl convert SOURCE --out {folder}"
        raise VictorError(f"{folder}: no such folder", fix=fix)
    if content is None:
        raise VictorError(
            f"{folder}: no config.json, so this is no model folder",
            fix="give the folder that holds config.json and model.safetensors",
        )
    return content


def load_config(folder: Path) -> PreTrainedConfig:
    """Read `config.json` as transformers does, with its defaults for what is not there.

    Raises:
        VictorError: If it names a model that transformers does not know, or a value is of no use.
    """
    with refusing_values(folder / "config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def refusing_values(place: object) -> Iterator[None]:
    """Refuse a configuration that transformers makes nothing of.

    Args:
        place: Where it stands, for the error.
    """
    try:
        yield
    except ImportError as error:  # towers of timm, there is none without it
        raise VictorError(
            f"{place}: the model needs a package that is not here ({in_short(error)})",
            fix="pip install 'victorctl[timm]'",
        ) from error
    except UNUSABLE as error:
        raise VictorError(
            f"{place}: transformers cannot read it ({in_short(error)})",
            fix="correct the file, or use another copy of the model",
        ) from error


def in_short(error: Exception) -> str:
    """Say what transformers says, without its lists of everything it knows."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return shorten(" ".join(lines[:2]), 160, placeholder=" ...")


def read_victor_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a Victor model.

    Raises:
        VictorError: If there is none, or the model is not converted.
    """
    content = read_config(folder)
    if "victor" not in content:
        raise VictorError(
            f"{folder}: not a Victor model yet", fix=f"victorctl convert {folder} --out FOLDER"
        )
    return content


def check_plain(folder: Path) -> None:
    """Refuse a folder whose weights are not what transformers would load, or that lacks a file.

    Raises:
        VictorError: If a low-rank adapter or another file of weights would be loaded unasked, or a
            link leads nowhere.
    """
    for file in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
        name = file.relative_to(folder).as_posix()
        used = any(fnmatch.fnmatch(name, pattern) for pattern in USED)
        if used and file.is_symlink() and not file.exists():
            raise VictorError(f"{file}: a link to a file that is not there", fix=weights.AGAIN)
    if (folder / ADAPTER).exists():
        raise VictorError(
            f"{folder / ADAPTER}: an adapter of PEFT, which would be added to the model unasked",
            fix="merge it into the weights with merge_and_unload and save the model to another "
            f"folder, or take {ADAPTER} away to leave the adapter out",
        )
    read_json(folder / "generation_config.json")  # transformers passes over a damaged one
    if "transformers_weights" in read_config(folder):
        raise VictorError(
            f"{folder / 'config.json'}: transformers_weights names another file of weights",
            fix=f"take the key away, and give the weights their usual name, {BASE_WEIGHTS}",
        )


def weight_files(folder: Path) -> list[Path]:
    """List the files of the base's weights, one or several shards.

    Raises:
        VictorError: If there are none, or a shard that the index names is missing.
    """
    if (folder / BASE_WEIGHTS).is_file():
        return [folder / BASE_WEIGHTS]
    names = shard_names(folder)
    if not names and any(folder.glob("*.safetensors")):
        problem = f"{folder}: {BASE_INDEX} is missing, so the shards have no order"
        raise VictorError(problem, fix=f"download {BASE_INDEX} into the folder")
    if not names:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
        found = f" but {pickles[0]}, a pickle, which may run code when opened" if pickles else ""
        raise VictorError(
            f"{folder}: no weights{found}",
            fix="use a copy with *.safetensors; transformers makes one by from_pretrained and "
            "save_pretrained",
        )
    for name in names:
        if not (folder / name).is_file():
            problem = f"{folder}: shard {name} is missing, and {BASE_INDEX} names it"
            raise VictorError(problem, fix="download the missing shard into the folder")
    return [folder / name for name in names]


def shard_names(folder: Path) -> list[str]:
    """List the files that the base's index names; none where there is no index.

    Raises:
        VictorError: If the index is damaged, or a name leads out of the folder or is Victor's own.
    """
    names = sorted(set(weight_map(folder / BASE_INDEX).values()))
    if modeling_victor.WEIGHTS in names:
        raise VictorError(
            f"{folder / BASE_INDEX}: shard {modeling_victor.WEIGHTS!r} has the name that registers "
            "are kept under",
            fix="rename the shard, in the index too",
        )
    return names


def weight_map(index: Path, suffix: str = ".safetensors") -> dict[str, str]:
    """Read which file each tensor is in, every one of them a safetensors file beside the index.

    Args:
        index: Empty where there is none.
        suffix: That every file must have.

    Raises:
        VictorError: If the index is damaged, or names a file elsewhere or of another kind.
    """
    content = read_json(index)
    if content is None:
        return {}
    found = content.get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise VictorError(f"{index}: its weight_map names no files", fix=weights.AGAIN)
    for name in sorted(set(found.values())):
        if "/" in name or "\\" in name or ".." in name or Path(name).is_absolute():
            problem = f"{index}: shard {name!r} lies outside of the folder"
            raise VictorError(problem, fix="use another copy of the model")
        if not name.endswith(suffix):
            problem = f"{index}: shard {name!r} is no {suffix.removeprefix('.')} file"
            raise VictorError(problem, fix="use another copy of the model")
    return found


def has_processor(folder: Path) -> bool:
    """Say whether the folder holds a processor, or the weights alone."""
    names = ("processor_config.json", "preprocessor_config.json")
    return any((folder / name).is_file() for name in names)


def has_chat_template(folder: Path) -> bool:
    """Say whether the folder holds a chat template, in any of the places where one may be."""
    names = ("processor_config.json", "tokenizer_config.json", "chat_template.json")
    stored = any("chat_template" in (read_json(folder / name) or {}) for name in names)
    return stored or (folder / "chat_template.jinja").is_file()


def load_processor(folder: Path, name: str | None = None) -> Any:
    """Load the processor of a model folder.

    Args:
        folder: Holds its files.
        name: What errors call it, where the folder is not the user's.

    Raises:
        VictorError: If there is none that transformers can load, or it needs another package.
    """
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ImportError, OSError, *UNUSABLE) as error:
        if isinstance(error, ImportError) or "Missing optional dependencies" in str(error):
            raise _needs_package(name or folder, error) from error
        raise VictorError(
            f"{name or folder}: no processor that transformers can load ({in_short(error)})",
            fix="copy the base model's processor and tokenizer files into the folder",
        ) from error


def _needs_package(folder: object, error: Exception) -> VictorError:
    """Name the package that a processor lacks, from what transformers says."""
    for package in PACKAGES:
        if package in str(error).lower():
            problem = f"{folder}: its processor needs {package}, which is not here"
            return VictorError(problem, fix="pip install 'victorctl[video]', which brings it")
    problem = f"{folder}: its processor needs a package that is not here ({in_short(error)})"
    return VictorError(problem, fix="install the package that transformers names")


def load(folder: Path, run: Run | None = None, registers: int | None = None) -> VictorMixin:
    """Load a Victor model with this package's own class, in eval mode.

    Args:
        folder: What `convert`, `finetune` or the class's own `save_pretrained` wrote.
        run: Device, number format and attention; None: the best device, all as stored.
        registers: How many to use; None for all.

    Raises:
        VictorError: If it is no Victor model, or is damaged.
    """
    family = family_of(read_config(Path(folder)), folder)
    cls = getattr(modeling_victor, family.ours)
    return load_with(cls.from_pretrained, Path(folder), run or Run(), registers)


def load_with(
    from_pretrained: Callable[..., Any], folder: Path, run: Run, registers: int | None = None
) -> Any:
    """Load a Victor model with a `from_pretrained` of transformers' kind, in eval mode.

    Args:
        from_pretrained: Of a class with registers, or one that finds such a class.
        folder: See `load`.
        run: Device, number format and attention.
        registers: How many to use; None for all.

    Raises:
        VictorError: If it is no Victor model, has fewer registers, or is damaged.
    """
    victor = read_victor_config(folder)["victor"]
    fewer = registers is not None and registers < victor["registers"]
    if fewer and not victor.get("elastic"):
        say(f"warning: {folder} was not trained for fewer registers (train.elastic)", quiet=False)
    check_plain(folder)
    weight_map(folder / modeling_victor.INDEX)
    for file in (*weight_files(folder), folder / modeling_victor.WEIGHTS):
        weights.read_entries(file)
    device, dtype = resolve(run)
    with quiet_loading(), fixes_of_shipped_file():
        model = from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention(run),
            ignore_mismatched_sizes=True,  # it refuses them itself, and names them
            registers=registers,
        )
    for name, parameter in model.victor.named_parameters():
        if not torch.isfinite(parameter).all():
            raise VictorError(
                f"{folder / modeling_victor.WEIGHTS}: {modeling_victor.PREFIX}{name} holds NaN or "
                "infinity",
                fix="train again with a lower learning rate, or convert again",
            )
    return model.to(device).eval()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bars and load reports away; errors are raised all the same."""
    bars, level = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def fixes_of_shipped_file() -> Iterator[None]:
    """Turn the shipped file's errors into ours: it cannot import them, and writes the same form."""
    try:
        yield
    except ValueError as error:
        problem, found, fix = str(error).partition("\n  fix: ")
        if not found:
            raise
        raise VictorError(problem, fix=fix) from error


def hash_base(folder: Path) -> dict[str, str]:
    """Read the base's weights, and return the SHA-256 of each file by name."""
    return {file.name: weights.sha256(file) for file in weight_files(folder)}


def copy_files(
    source: Path,
    target: Path,
    *,
    link: bool,
    leave_out: Collection[str] = (),
    advance: weights.Advance = lambda _count: None,
) -> dict[str, str]:
    """Copy a model without its Victor tensors: base shards byte for byte, small files, lineage.

    The shipped file comes from this package, and indexes are left to `write_indexes`. A linked
    shard must never be written to: it is the source's own.

    Args:
        source: A model folder.
        target: A new folder.
        link: Hard-link the shards where the file system can; they are read and checked too.
        leave_out: Names of shards that are not copied.
        advance: Is told of the bytes of shards that were read.

    Returns:
        SHA-256 of every copied shard, by name.

    Raises:
        VictorError: If a shard is missing or damaged, or holds NaN or infinity.
    """
    copy_small_files(source, target)
    return {
        file.name: weights.copy_file(file, target / file.name, link=link, advance=advance)
        for file in weight_files(source)
        if file.name not in leave_out
    }


def copy_small_files(source: Path, target: Path) -> None:
    """Copy everything but weights: configuration, processor, licence, lineage, our code."""
    for pattern in (*SMALL_FILES, LINEAGE):
        for file in source.glob(pattern):
            if file.is_file():
                copy = target / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)  # what a link leads to, as in the Hub's cache
    shutil.copyfile(CODE, target / CODE.name)


def shipped_code_intact(folder: Path) -> bool:
    """Say whether the folder's `modeling_victor.py` is byte for byte this package's."""
    file = folder / CODE.name
    return file.is_file() and file.read_bytes() == CODE.read_bytes()


def runs_our_code(folder: Path) -> bool:
    """Say whether transformers, trusting the folder, would run this package's code and no other."""
    config = read_victor_config(folder)
    ours = f"{CODE.stem}.{family_of(config, folder).ours}"
    named = set(config.get("auto_map", {}).values())
    more = (folder / "custom_generate").exists()  # transformers would run what lies there, too
    return named == {ours} and not more and shipped_code_intact(folder)
