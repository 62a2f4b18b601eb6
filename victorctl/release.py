"""What of a model folder may be published: checked, and free of what is the user's own."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from victorctl import checkpoint, lineage, weights
from victorctl.errors import VictorError
from victorctl.modeling_victor import INDEX, WEIGHTS
from victorctl.report import SCHEMA
from victorctl.runtime import reading
from victorctl.sources import BASE_INDEX, LINEAGE, SMALL_FILES, read_json

INDEXES = (BASE_INDEX, INDEX)
PLOT, REPORT = "tradeoff.png", "report.json"
CARD = "README.md"
PUBLISHED = (
    *SMALL_FILES, LINEAGE, *INDEXES, "*.safetensors", checkpoint.CODE.name, REPORT, PLOT, CARD
)  # fmt: skip
"""Everything that is published; anything else stays here."""
NEEDED = ("accuracy", "kept", "interval", "by_type", "speedup", "baselines", "questions")
LOCAL = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")
PART = r"""[^/\\\s"'<>|]+"""
PATH = re.compile(
    rf"""file:///?(?:{PART}/)*(?P<url>(?:{PART})?)"""
    rf"""|(?<![\w/.<\]])(?:~[\w.-]*|\.\.?(?=/\.\.|/)|[A-Za-z]:)?/(?:{PART}/)+(?P<root>(?:{PART})?)"""
    rf"""|(?<![\w/.<\]])~[\w.-]*/(?P<home>{PART})"""
    rf"""|(?:\b[A-Za-z]:|\\)\\(?:{PART}\\)*(?P<drive>(?:{PART})?)"""
)
"""A path from the root, a home or a folder above, and its last part."""
QUOTED = re.compile(r"""(['"])((?:~|/)[^'"\n]*)\1""")
HOME = re.compile(r"/(?:home|Users)/[^/\s'\"]+(?=$|[\s'\",;)])")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


def is_published(name: str) -> bool:
    """Say whether a file of a repository is one that a model has, by its path there."""
    alone = "/" not in name or name.startswith("additional_chat_templates/")
    return alone and any(fnmatch(name, pattern) for pattern in PUBLISHED)


@dataclass(frozen=True)
class Release:
    """A checked folder, and what of it is published."""

    folder: Path
    config: dict[str, Any]
    stages: list[dict[str, Any]]
    """What `victor.json` records, without paths."""
    report: dict[str, Any] | None
    """Of an evaluation of these very weights, without paths."""
    files: dict[str, Path | bytes]
    """By path in the repository; bytes where they differ from the file's."""
    hashes: dict[str, str]
    """SHA-256 of each."""
    left_out: list[str]
    """Files that stay here."""

    @property
    def origin(self) -> dict[str, Any]:
        """What the model was made from."""
        return self.stages[0].get("source", {})

    @property
    def trained(self) -> bool:
        """Whether the registers were."""
        return any(stage["command"] == "finetune" for stage in self.stages)


def prepare(
    folder: Path, *, report: Path | None = None, untrained: bool = False, quiet: bool = False
) -> Release:
    """Check a folder, read every weight, and choose what is published.

    Args:
        folder: A Victor model.
        report: `report.json` of an evaluation; `eval/report.json` in the folder if not given.
        untrained: Whether registers that were never trained may be published.
        quiet: Show no progress.

    Raises:
        VictorError: If the folder is not whole, holds NaN, has no history or another than its
            weights, runs code that is not this package's, or the report is another model's.
    """
    config = checkpoint.read_victor_config(folder)
    checkpoint.check_plain(folder)
    _check_code(folder)
    stages = check_history(folder, untrained=untrained)
    measured = _read_report(folder, report, stages)
    hashes = _check_weights(folder, stages, quiet=quiet)
    files = dict(_contents(folder, hashes, measured))
    for name, content in files.items():
        if name not in hashes:
            check_secrets(folder / name, content)
    hashes |= {name: hash_of(content) for name, content in files.items() if name not in hashes}
    return Release(
        folder,
        config,
        scrubbed(stages),
        scrubbed(measured[1]) if measured else None,
        files,
        hashes,
        sorted(_left_out(folder, files)),
    )


def _check_code(folder: Path) -> None:
    if not checkpoint.runs_our_code(folder):
        raise VictorError(
            f"{folder}: it would run other code than the modeling_victor.py of this version",
            fix=f"cp {checkpoint.CODE} {folder}/, or convert and train again",
        )


def check_history(folder: Path, *, untrained: bool) -> list[dict[str, Any]]:
    """Read what was done to a model.

    Raises:
        VictorError: If it is of unknown origin, was never proved, or never trained.
    """
    stages = lineage.read_lineage(folder)["stages"]
    if not stages:
        raise VictorError(
            f"{folder}: no {LINEAGE}, so nothing says what the model was made from",
            fix="convert and train again",
        )
    proof = stages[0].get("parity") or {}
    if not proof.get("hashes_equal") and proof.get("max_logit_difference") is None:
        raise VictorError(
            f"{folder}: nothing proved, when it was converted, that it computes what its base does",
            fix="convert again, with --verify hash or full",
        )
    if not untrained and all(stage["command"] == "convert" for stage in stages):
        raise VictorError(
            f"{folder}: its registers were never trained, so it sees little of a picture",
            fix=f"victorctl finetune {folder} --data DATA --out FOLDER; or add --untrained",
        )
    return stages


def _check_weights(folder: Path, stages: list[dict[str, Any]], *, quiet: bool) -> dict[str, str]:
    """Refuse weights that are not what the history says."""
    hashes, last = hash_weights(folder, quiet=quiet), stages[-1]
    if lineage.hash_of(hashes) != last["weights_sha256"]:
        raise VictorError(
            f"{folder}: its weights are not those that {last['command']} wrote",
            fix=f"restore the files that it wrote, or {last['command']} again",
        )
    base = {name: digest for name, digest in hashes.items() if name != WEIGHTS}
    if last["base_intact"] and lineage.hash_of(base) != stages[0]["parent_sha256"]:
        raise VictorError(
            f"{folder}: {LINEAGE} says that the base is intact, and its weights were changed",
            fix="convert and train again",
        )
    return hashes


def hash_weights(folder: Path, *, quiet: bool) -> dict[str, str]:
    """Read every weight of a model, and return the SHA-256 of each file by name.

    Raises:
        VictorError: If a file is not whole, holds NaN or infinity, or the index does not fit.
    """
    files = [*checkpoint.weight_files(folder), folder / WEIGHTS]
    shards = {file.name: weights.read_entries(file) for file in files}
    weights.check_index(folder, checkpoint.weight_map(folder / INDEX), shards)
    total = sum(file.stat().st_size for file in files)
    with reading("checking weights", total, quiet=quiet) as advance:
        return {file.name: weights.checked_sha256(file, advance) for file in files}


def _read_report(
    folder: Path, given: Path | None, stages: list[dict[str, Any]]
) -> tuple[Path, dict[str, Any]] | None:
    """Read what was measured of these very weights."""
    beside = folder / "eval" / REPORT
    file = given or (beside if beside.is_file() else folder / REPORT)  # where pull puts it
    if given is not None and given.is_dir():
        file = given / REPORT
    found = read_json(file)
    if found is None:
        if given is not None:
            raise VictorError(
                f"{file}: no such report",
                fix="leave --report out, or: victorctl eval "
                f"{folder} --data DATA --out {file.parent}",
            )
        return None
    whole = all(key in found for key in NEEDED) and isinstance(found.get("settings"), dict)
    if found.get("schema") != SCHEMA or not whole:
        raise VictorError(f"{file}: no report of victorctl eval", fix="give its report.json")
    if found.get("weights_sha256") != stages[-1]["weights_sha256"]:
        raise VictorError(
            f"{file}: it was made on other weights than those in {folder}",
            fix=f"victorctl eval {folder} --data DATA",
        )
    return file, found


def _contents(
    folder: Path, hashes: Mapping[str, str], measured: tuple[Path, dict[str, Any]] | None
) -> Iterator[tuple[str, Path | bytes]]:
    """List what is published, by path in the repository."""
    for pattern in SMALL_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                _check_own(file, folder)
                yield file.relative_to(folder).as_posix(), _without_paths(file)
    for name in (*INDEXES, *hashes, checkpoint.CODE.name):
        yield name, folder / name
    yield LINEAGE, _as_json(scrubbed(lineage.read_lineage(folder)))
    if measured:
        file, found = measured
        yield REPORT, _as_json(scrubbed(found))
        if found["kept"] is not None and (file.parent / PLOT).is_file():
            yield PLOT, file.parent / PLOT


def _check_own(file: Path, folder: Path) -> None:
    """Refuse a link to elsewhere, a pickle under another name, and a file that names foreign code.

    Raises:
        VictorError: If it is one.
    """
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise VictorError(
            f"{file}: a link out of the folder, and what it leads to would be published",
            fix="put the file itself there, or take the link away",
        )
    if file.suffix == ".model" and file.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"PK"):
        raise VictorError(
            f"{file}: a pickle, which may run code when opened", fix="take it out of the folder"
        )
    named = (read_json(file) or {}).get("auto_map") if file.suffix == ".json" else None
    if named and file.name != "config.json":
        raise VictorError(
            f"{file}: its auto_map names code that is not this package's",
            fix="take auto_map out of the file",
        )


def _without_paths(file: Path) -> Path | bytes:
    """Leave out where on this machine a configuration was loaded from."""
    if file.suffix != ".json" or file.name == "tokenizer.json":
        return file
    content = read_json(file)
    cleaned = _without_local(content)
    return file if cleaned == content else _as_json(cleaned)


def _without_local(value: Any) -> Any:
    """Cut the values of keys that say where something was loaded from, however deep."""
    if isinstance(value, dict):
        return {
            key: scrubbed(inner) if key in LOCAL else _without_local(inner)
            for key, inner in value.items()
        }
    return [_without_local(inner) for inner in value] if isinstance(value, list) else value


def scrubbed(value: Any) -> Any:
    """Keep only the last part of every path within texts, so that no folder and user is named."""
    if isinstance(value, Mapping):
        return {scrubbed(key): scrubbed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if HOME.fullmatch(value) or value == str(Path.home()):
        return "~"
    if value.startswith(("/", "~/")) and "\n" not in value:
        return Path(value).name
    text = HOME.sub("~", value)
    text = QUOTED.sub(lambda found: f"{found[1]}{Path(found[2]).name}{found[1]}", text)
    return PATH.sub(lambda found: next(filter(None, found.groupdict().values()), ""), text)


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def check_secrets(file: Path, content: Path | bytes) -> None:
    """Refuse to publish a token of the Hub."""
    if TOKEN.search(content if isinstance(content, bytes) else content.read_bytes()):
        raise VictorError(
            f"{file}: holds what looks like a token of the Hub, for everybody to use",
            fix="take it out of the file, and revoke it at https://huggingface.co/settings/tokens",
        )


def hash_of(content: Path | bytes) -> str:
    """Hash what will be in a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return weights.sha256(content)


def _left_out(folder: Path, files: Mapping[str, Any]) -> Iterator[str]:
    """Name what lies in the folder and stays there."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "additional_chat_templates":
            yield f"{path.name}/"
        elif path.is_file() and path.name not in {*files, CARD}:
            yield path.name
