"""Where a model comes from: a folder, or a Hub id whose files are fetched into the Hub's cache."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from victorctl.errors import VictorError
from victorctl.weights import AGAIN

DEMO = Path(__file__).parent / "assets" / "demo" / "checkpoint"
SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
BASE_WEIGHTS = "model.safetensors"
BASE_INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"  # of weights as pickles, in LLaVA's original layout
LINEAGE = "victor.json"
ADAPTER = "adapter_config.json"  # of PEFT: fetched to be noticed, never copied
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
)
"""What is copied beside the weights: never code, pickles or the state of an optimiser."""


BEGIN = "<!-- written by victorctl: text above and below these two lines is yours and stays -->"
END = "<!-- end of what victorctl wrote -->"


@dataclass(frozen=True)
class Source:
    """A model's files on this machine; of a Hub id at first only the small ones."""

    folder: Path
    name: str
    """Hub id, or the folder's own name: what may be recorded."""
    commit: str | None
    """Of a Hub id."""

    @property
    def is_here(self) -> bool:
        """Whether nothing need be fetched."""
        return self.commit is None


def open_source(source: str, *, revision: str | None = None) -> Source:
    """Find a folder, or fetch the small files of a Hub id; "demo" is the model that comes along.

    Raises:
        VictorError: If there is no such folder, or the Hub does not give it.
    """
    folder = Path(source).expanduser()
    if source == "demo":
        folder = DEMO
    if source and folder.is_dir():
        if revision is not None:
            raise VictorError(
                f"--revision {revision}: {source} is a folder, which has no revisions",
                fix="leave --revision out, or give a Hub id",
            )
        name = "demo" if folder.resolve() == DEMO.resolve() else folder.resolve().name
        return Source(folder, name, None)
    if folder.is_file():
        raise VictorError(
            f"{source}: a file, not a model folder", fix="give the folder that holds config.json"
        )
    if not HUB_ID.fullmatch(source) or Path(source).parent.is_dir():
        raise VictorError(
            f"{source}: no such folder",
            fix="check the path, or give a Hub id such as llava-hf/llava-1.5-7b-hf",
        )
    return _fetch(source, revision, (*SMALL_FILES, BASE_INDEX, BIN_INDEX, ADAPTER))


def fetch_weights(source: Source, files: Sequence[str]) -> None:
    """Fetch weight files of a Hub id; a folder has its files."""
    if not source.is_here:
        _fetch(source.name, source.commit, files)


def file_names(source: Source) -> set[str]:
    """List the files of a model, of a Hub id also those that were not fetched."""
    here = {path.name for path in source.folder.iterdir()}
    if source.is_here:
        return here
    from huggingface_hub import HfApi, errors

    try:
        return here | set(HfApi().list_repo_files(source.name, revision=source.commit))
    except (errors.HTTPError, errors.OfflineModeIsEnabled):
        return here


def _fetch(name: str, revision: str | None, files: Sequence[str]) -> Source:
    import huggingface_hub
    from huggingface_hub import errors

    from victorctl.hub import endpoint

    endpoint()  # refuse one that could be read on the way
    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files))
        )
    except errors.GatedRepoError as error:
        raise VictorError(
            f"{name}: the Hub gives this model only to those who accepted its terms",
            fix=f"accept them at https://huggingface.co/{name}, then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise VictorError(
            f"{name}: no such folder, and no such model on the Hub (or a private one)",
            fix="check the name; for a private model: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise VictorError(
            f"{name}: no revision {revision} on the Hub",
            fix=f"leave --revision out, or choose one at https://huggingface.co/{name}/commits",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:
        raise _unreachable(name, error) from error
    return Source(folder, name, folder.name if COMMIT.fullmatch(folder.name) else revision)


def _unreachable(name: str, error: Exception) -> VictorError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return VictorError(
            f"{name}: no such folder, not in the cache, and HF_HUB_OFFLINE keeps the Hub away",
            fix="unset HF_HUB_OFFLINE, or give a folder",
        )
    reason = type(error.__cause__ or error).__name__
    return VictorError(
        f"{name}: no such folder, and the Hub does not answer ({reason})",
        fix="check the network and the proxy, or give a folder",
    )


def check_fetched(
    source: Source, hashes: Mapping[str, str], small: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Hold files of a Hub id to the hashes that the Hub keeps of them.

    Args:
        source: Of a folder, which nobody else knows hashes of, nothing is checked.
        hashes: SHA-256 of its files, by name: what the Hub keeps of large ones.
        small: Git's hashes of them, what it keeps of small ones.

    Raises:
        VictorError: If a file was damaged on its way, or since.
    """
    for name, found in hashes.items():
        blob = (source.folder / name).resolve()  # the cache names it by its hash
        kept = SHA256.fullmatch(blob.name) or (name in small and COMMIT.fullmatch(blob.name))
        if not source.is_here and kept and blob.name not in (found, small.get(name)):
            raise VictorError(
                f"{source.name}: {name} is not the file that the Hub holds: it was damaged",
                fix=f"rm {blob}, and run the command again",
            )


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file.

    Raises:
        VictorError: If the file holds something else.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VictorError(f"{file}: not JSON ({error})", fix=AGAIN) from error
    if not isinstance(content, dict):
        raise VictorError(f"{file}: not a JSON object", fix=AGAIN)
    return content
