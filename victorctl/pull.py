"""The pull stage: a published model comes back as a folder, every file of it proved."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from victorctl import checkpoint, hub, lineage
from victorctl.errors import VictorError
from victorctl.folders import check_output, check_space, writing
from victorctl.recipe import Run
from victorctl.release import hash_weights, is_published
from victorctl.runtime import say
from victorctl.sources import (
    LINEAGE,
    Source,
    check_fetched,
    fetch_weights,
    file_names,
    open_source,
    read_json,
)
from victorctl.weights import sha256


def pull(repo: str, *, revision: str | None = None, run: Run) -> dict[str, Any]:
    """Fetch a Victor model from the Hub.

    Args:
        repo: OWNER/NAME.
        revision: Branch, tag or commit; the main branch if not given.
        run: `out` is needed.

    Returns:
        The keys of `pull --json`.

    Raises:
        VictorError: If there is no such model, it is not a Victor model, or a file is not what its
            history says.
    """
    if run.out is None:
        raise VictorError("pull needs a folder to write", fix="add --out FOLDER")
    check_output(run.out, overwrite=run.overwrite)
    source = open_source(repo, revision=revision)
    if source.is_here:
        raise VictorError(f"{repo}: a folder, not a model on the Hub", fix="give OWNER/NAME")
    if "victor" not in (read_json(source.folder / "config.json") or {}):
        raise VictorError(
            f"{repo}: not a Victor model", fix=f"victorctl convert {repo} --out {run.out}"
        )
    names = sorted(name for name in file_names(source) if is_published(name))
    fetch_weights(source, names)
    with writing(run.out, overwrite=run.overwrite) as folder:
        _copy(source, folder, names)
        digest = _prove(source, folder, quiet=run.quiet)
    if not checkpoint.runs_our_code(run.out):
        say(
            f"warning: {run.out}: its modeling_victor.py is not that of this version",
            quiet=False,
        )
    return {
        "out": str(run.out),
        "repo": repo,
        "commit": source.commit,
        "weights_sha256": digest,
        "stages": [stage["command"] for stage in lineage.read_lineage(run.out)["stages"]],
    }


def _copy(source: Source, folder: Path, names: Sequence[str]) -> None:
    """Copy files from the cache; small ones are held to the hash that the Hub keeps of them.

    Raises:
        VictorError: If one was damaged on its way, or since.
    """
    check_space(folder, sum((source.folder / name).stat().st_size for name in names))
    for name in names:
        file, target = source.folder / name, folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
        if not name.endswith(".safetensors"):
            check_fetched(source, {name: sha256(target)}, {name: hub.git_hash(target)})


def _prove(source: Source, folder: Path, *, quiet: bool) -> str:
    """Read every weight, and hold them to the Hub's hashes and to the model's own history.

    Returns:
        Weight hash of the folder.
    """
    hashes = hash_weights(folder, quiet=quiet)
    more = {file.name for file in folder.glob("*.safetensors")} - hashes.keys()
    if more:
        raise VictorError(
            f"{source.name}: {min(more)} is in no index, so nobody knows what it is",
            fix="ask its author to push the model again",
        )
    check_fetched(source, hashes)
    stages, found = lineage.read_lineage(folder)["stages"], lineage.hash_of(hashes)
    if not stages or stages[-1]["weights_sha256"] != found:
        raise VictorError(
            f"{source.name}: its weights are not those that {LINEAGE} records",
            fix="ask its author to push it again",
        )
    return found
