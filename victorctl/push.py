"""The push stage: a checked model and its card go to the Hub in one commit, or nothing does."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from victorctl import hub
from victorctl.card import metadata_of, own_text, write_card
from victorctl.errors import VictorError
from victorctl.hub import Remote
from victorctl.licence import Licence, find_licence
from victorctl.recipe import Recipe, Run
from victorctl.release import (
    CARD,
    PLOT,
    REPORT,
    Release,
    check_history,
    check_secrets,
    hash_of,
    prepare,
    scrubbed,
)
from victorctl.runtime import say
from victorctl.sections import PushSection
from victorctl.sources import ADAPTER, HUB_ID, SMALL_FILES
from victorctl.units import size

KEPT = ("LICENSE*", "NOTICE*")  # of files that models have, what may be the user's own
STALE = (
    *(name for name in SMALL_FILES if name not in KEPT),
    *("*.safetensors", "*.safetensors.index*.json", "pytorch_model*.bin*", REPORT, PLOT, ADAPTER),
)
"""What a model is loaded from or judged by: of these no others than the new ones stay there."""
UNKNOWN, NEW, CHANGED, SAME = "unknown", "new", "changed", "same"


@dataclass(frozen=True)
class Parcel:
    """Everything of a push that is settled before anything is sent."""

    repo: str
    endpoint: str
    settings: PushSection
    release: Release
    """With the card among its files."""
    licence: Licence
    remote: Remote | None
    """None where the Hub could not be asked."""

    def changes(self, remote: Remote | None) -> dict[str, str]:
        """Say of every file what becomes of it on the Hub."""
        found = {}
        for name, content in self.release.files.items():
            if remote is None:
                found[name] = UNKNOWN
            elif name not in remote.files:
                found[name] = NEW
            else:
                kept = hub.same(remote.files[name], content, self.release.hashes[name])
                found[name] = SAME if kept else CHANGED
        return found

    def stale(self, remote: Remote | None) -> list[str]:
        """Name weights on the Hub that are not this model's."""
        return sorted(
            name
            for name in (remote.files if remote else ())
            if name not in self.release.files
            and (name.startswith("custom_generate/") or ("/" not in name and _is_stale(name)))
        )

    def is_there(self, remote: Remote) -> bool:
        """Whether the Hub holds all of this already."""
        same = {*self.changes(remote).values()} <= {SAME} and not self.stale(remote)
        return same and remote.is_branch


def _is_stale(name: str) -> bool:
    return any(fnmatch(name, old) for old in STALE)


def push(folder: Path, repo: str, *, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Publish a model folder.

    Args:
        folder: A folder that `finetune` wrote.
        repo: OWNER/NAME on the Hub, or NAME alone for one's own.
        recipe: Section `push`.
        run: `dry_run` checks everything, and sends nothing.

    Returns:
        The keys of `push --json`.

    Raises:
        VictorError: If the folder is not fit to be published, or the Hub refuses.
    """
    settings = recipe.push
    if settings.pr and settings.revision:
        raise VictorError("--pr --revision: a pull request has a branch of its own", fix="leave "
                          "one of the two out")  # fmt: skip
    address = hub.endpoint()
    hub.check_name(repo)
    _check_dataset(settings.dataset)
    given = Path(settings.report) if settings.report else None
    origin = check_history(folder, untrained=settings.untrained)[0].get("source", {})
    say(f"asking {address} about {repo}", quiet=run.quiet)
    name, remote = _remote(repo, settings, dry_run=run.dry_run)
    own = _own_card(folder, name, remote)
    licence = find_licence(
        settings.license, metadata_of(own), origin, folder, online=remote is not None
    )
    release = prepare(folder, report=given, untrained=settings.untrained, quiet=run.quiet)
    card = write_card(release, name, licence, own, settings.dataset).encode()
    _check_card(folder / CARD, card.decode())
    release = replace(
        release, files=release.files | {CARD: card}, hashes=release.hashes | {CARD: hash_of(card)}
    )
    parcel = Parcel(name, address, settings, release, licence, remote)
    result = _describe(parcel)
    if run.dry_run:
        return result
    return result | _send(parcel, quiet=run.quiet)


def _check_dataset(name: str | None) -> None:
    if name and not (HUB_ID.fullmatch(name)):
        raise VictorError(
            f"--set push.dataset={name}: no name of a dataset on the Hub", fix="write OWNER/NAME"
        )


def _remote(repo: str, settings: PushSection, *, dry_run: bool) -> tuple[str, Remote | None]:
    """Look what is there; a dry run goes on without the Hub."""
    try:
        name = hub.whole_name(repo)
        remote = hub.look(name, settings.revision)
        if remote.commit is None and settings.revision:  # a new branch starts from the main one
            remote = replace(hub.look(name, None), is_branch=False)
    except VictorError as error:
        if not dry_run:
            raise
        say(f"warning: what is there is not known: {error.problem}", quiet=False)
        return repo, None
    _check_private(name, settings, remote)
    return name, remote


def _check_private(name: str, settings: PushSection, remote: Remote) -> None:
    if settings.private and remote.private is False:
        raise VictorError(
            f"--private: {name} is public already",
            fix=f"leave --private out, or change it at {hub.endpoint()}/{name}/settings",
        )


def _own_card(folder: Path, name: str, remote: Remote | None) -> str:
    """Read the card that there is: that on the Hub, unless only the folder's has text of its own.

    Raises:
        VictorError: If both have, and not the same.
    """
    here = _read_card(folder / CARD) if (folder / CARD).is_file() else ""
    if remote is None or CARD not in remote.files:
        return here
    from huggingface_hub import hf_hub_download

    with hub.explained(name):
        file = hub.patiently(hf_hub_download, name, CARD, revision=remote.commit)
    there = _read_card(Path(file))
    ours, theirs = own_text(here), own_text(there)
    if not any(ours) or ours == theirs:
        return there
    if any(theirs):
        raise VictorError(
            f"{folder / CARD}: your text there is not that on the Hub, and one would be lost",
            fix=f"join the two in the folder's page and in that of {name}, or remove one",
        )
    return here


def _read_card(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VictorError(f"{file}: not UTF-8 ({error})", fix="save it as UTF-8") from error


def _check_card(file: Path, card: str) -> None:
    """Refuse a token in a page, and warn of paths in the user's own text."""
    check_secrets(file, card.encode())
    own = "\n".join(own_text(card))
    if scrubbed(own) != own:
        say(f"warning: {file}: your own text names a path of this machine", quiet=False)


def _describe(parcel: Parcel) -> dict[str, Any]:
    """Say what goes up, and what would change there."""
    release, changes = parcel.release, parcel.changes(parcel.remote)
    return {
        "repo": parcel.repo,
        "endpoint": parcel.endpoint,
        "revision": parcel.settings.revision or "main",
        "license": parcel.licence.license,
        "files": [
            {
                "path": name,
                "bytes": len(content) if isinstance(content, bytes) else content.stat().st_size,
                "sha256": release.hashes[name],
                "change": changes[name],
            }
            for name, content in sorted(release.files.items())
        ],
        "removed": parcel.stale(parcel.remote),
        "left_out": release.left_out,
        "card": release.files[CARD].decode(),
        "victor_json": release.files["victor.json"].decode(),
    }


def _send(parcel: Parcel, *, quiet: bool) -> dict[str, Any]:
    """Make one commit of what is new, changed and stale; nothing where all is there."""
    if parcel.is_there(parcel.remote):
        say(f"{parcel.repo} holds all of this already: nothing was sent", quiet=quiet)
        return {"commit": None, "url": f"{parcel.endpoint}/{parcel.repo}"}
    from huggingface_hub import HfApi

    api, settings = HfApi(), parcel.settings
    if gone := parcel.stale(parcel.remote):
        say(f"removing there what is not this model's: {', '.join(gone)}", quiet=quiet)
    with hub.explained(parcel.repo), hub.bars(quiet=quiet):
        if parcel.remote.commit is None:
            private = settings.private or None  # what the owner's default is
            hub.patiently(api.create_repo, parcel.repo, private=private, exist_ok=True)
            made = hub.look(parcel.repo, None)
            _check_private(parcel.repo, settings, made)
            parcel = replace(parcel, remote=replace(made, is_branch=settings.revision is None))
        with _branch(parcel):
            parcel = replace(parcel, remote=replace(parcel.remote, is_branch=True))
            # a pull request is opened once: nobody could tell whether a lost answer opened it
            info = _Sending(parcel)() if settings.pr else hub.patiently(_Sending(parcel))
        if not settings.pr and not parcel.is_there(hub.look(parcel.repo, settings.revision)):
            raise VictorError(
                f"{parcel.repo}: the Hub took the commit, and does not hold all files of it",
                fix="look for a .gitignore there that leaves some out, and run the command again",
            )
    say(f"published at {info['url']}", quiet=quiet)
    return info


@contextmanager
def _branch(parcel: Parcel) -> Iterator[None]:
    """Make a branch that does not exist, and take it away again if nothing comes of it."""
    from huggingface_hub import HfApi

    branch = parcel.settings.revision
    if branch is None or parcel.remote.is_branch:
        yield
        return
    hub.patiently(HfApi().create_branch, parcel.repo, branch=branch)
    try:
        yield
    except BaseException:
        with suppress(Exception):
            HfApi().delete_branch(parcel.repo, branch=branch)
        raise


class _Sending:
    """Sends a parcel; called again, it looks first whether the last call went through."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel, self.tried = parcel, False

    def __call__(self) -> dict[str, str]:
        from huggingface_hub import HfApi

        parcel, settings = self.parcel, self.parcel.settings
        if parcel.is_there(parcel.remote):  # a new branch of what is there
            return {
                "commit": parcel.remote.commit,
                "url": f"{parcel.endpoint}/{parcel.repo}/tree/{settings.revision}",
            }
        if self.tried:
            now = hub.look(parcel.repo, settings.revision)
            if parcel.is_there(now):
                return {"commit": now.commit, "url": f"{parcel.endpoint}/{parcel.repo}"}
        self.tried = True
        made = HfApi().create_commit(
            parcel.repo,
            [*_operations(parcel)],
            commit_message=settings.message or "Victor model, by victorctl",
            revision=settings.revision,
            create_pr=settings.pr,
            parent_commit=parcel.remote.commit,
        )
        return {"commit": made.oid, "url": made.pr_url or f"{parcel.endpoint}/{parcel.repo}"}


def _operations(parcel: Parcel) -> Iterator[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    changes: Mapping[str, str] = parcel.changes(parcel.remote)
    for name, content in sorted(parcel.release.files.items()):
        if changes[name] != SAME:
            yield CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
    for name in parcel.stale(parcel.remote):
        yield CommitOperationDelete(name)


def table(result: Mapping[str, Any]) -> RenderableType:
    """Show what goes up, what stays, and the card."""
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("file", "change", "size", "sha256"):
        grid.add_column(title, justify="right" if title == "size" else "left", no_wrap=True)
    for file in result["files"]:
        grid.add_row(file["path"], file["change"], size(file["bytes"]), file["sha256"][:12])
    for name in result["removed"]:
        grid.add_row(name, "removed")
    place = f"{result['endpoint']}/{result['repo']}, {result['revision']}: {result['license']}"
    stays = f"stays here: {', '.join(result['left_out'])}" if result["left_out"] else ""
    if "commit" in result:
        return Group(Text(place, "bold"), "", grid, *([stays] if stays else []))
    card = Text(result["card"], no_wrap=True, overflow="ignore")
    return Group(Text(place, "bold"), "", grid, *([stays] if stays else []), "", card)


def after(result: Mapping[str, Any]) -> list[str]:
    """Write the command that fetches what was published."""
    words = ["pull", result["repo"], "--out", "FOLDER"]
    revision = result["revision"]
    if "/discussions/" in result.get("url", ""):
        revision = f"refs/pr/{result['url'].rpartition('/')[2]}"
    return words if revision == "main" else [*words, "--revision", revision]
