"""The record of what made a model folder: `victor.json`, an entry for every stage."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from victorctl import weights
from victorctl.errors import VictorError
from victorctl.runtime import versions
from victorctl.sources import LINEAGE, read_json

SCHEMA = "victorctl/lineage/1"


def weights_sha256(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """Hash all weights: SHA-256 over sorted lines "file name, SHA-256" of the safetensors files.

    Args:
        folder: A model folder.
        known: Hashes of files, by name, that need not be computed again.
    """
    known = known or {}
    files = sorted(folder.glob("*.safetensors"))
    return hash_of({file.name: known.get(file.name) or weights.sha256(file) for file in files})


def hash_of(files: Mapping[str, str]) -> str:
    """Hash the hashes of weight files, by name; see `weights_sha256`."""
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_lineage(folder: Path) -> dict[str, Any]:
    """Read `victor.json`; an empty lineage where there is none.

    Raises:
        VictorError: If it is no such record.
    """
    found = read_json(folder / LINEAGE) or {"schema": SCHEMA, "stages": []}
    stages = found.get("stages")
    if not isinstance(stages, list) or not all(_is_stage(stage) for stage in stages):
        raise VictorError(
            f"{folder / LINEAGE}: not a record of stages as {SCHEMA} describes",
            fix="copy the file anew from where the model came from",
        )
    return found


def _is_stage(stage: Any) -> bool:
    if not isinstance(stage, dict):
        return False
    texts = ("command", "parent_sha256", "weights_sha256")
    named = all(isinstance(stage.get(key), str) for key in texts)
    objects = all(isinstance(stage.get(key, {}), dict) for key in ("source", "settings"))
    return named and objects and isinstance(stage.get("base_intact"), bool)


def base_intact(folder: Path, base: Mapping[str, str] | None = None) -> bool:
    """Say whether the base's weights are byte for byte those of its source.

    Args:
        folder: A model folder.
        base: Hashes of the base's files, by name; None to believe what is recorded.
    """
    stages = read_lineage(folder)["stages"]
    recorded = bool(stages) and stages[-1]["base_intact"]
    return recorded and (base is None or hash_of(base) == stages[0]["parent_sha256"])


def add_stage(  # noqa: PLR0913
    folder: Path,
    *,
    command: str,
    settings: Mapping[str, Any],
    parent_sha256: str,
    seed: int,
    base_intact: bool,
    known: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Note in `victor.json` what made this folder, after all of its weights are written.

    Args:
        folder: The new folder; holds its parent's `victor.json`, if the parent had one.
        command: Name of the stage.
        settings: Resolved settings; of a path only its last part is kept.
        parent_sha256: Weight hash of what it was made from.
        seed: Seed of the stage.
        base_intact: Whether the base's weights are byte for byte those of its source.
        known: Hashes of weight files; see `weights_sha256`.
        details: More to record.

    Returns:
        Weight hash of the folder.
    """
    own = weights_sha256(folder, known)
    stage = {
        "command": command,
        "settings": _without_paths(settings),
        "seed": seed,
        "versions": versions(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent_sha256": parent_sha256,
        "weights_sha256": own,
        "base_intact": base_intact,
        **_without_paths(details or {}),
    }
    lineage = read_lineage(folder)
    lineage["stages"].append(stage)
    text = json.dumps(lineage, indent=2, ensure_ascii=False) + "\n"
    (folder / LINEAGE).write_text(text, encoding="utf-8")
    return own


def _without_paths(value: Any) -> Any:
    """Keep only the last part of every path: what is published names no folder and no user."""
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and _is_path(value):
        return Path(value).name
    return value


def _is_path(text: str) -> bool:
    return "/" in text and (text.startswith(("/", "~", ".")) or Path(text).exists())
