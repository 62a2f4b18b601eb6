"""The Hub: where it is, what it holds, and what its errors mean."""

import hashlib
import ipaddress
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from victorctl.errors import VictorError
from victorctl.runtime import say

TRIES = 5
WAIT = 1.0  # seconds before the second try; each later one waits twice as long
LONGEST = 300.0  # seconds that are waited, whatever the Hub asks for
LATER = (408, 429, 500, 502, 503, 504)  # statuses that may pass

Found = TypeVar("Found")


@dataclass(frozen=True)
class Remote:
    """What a repository holds at one revision."""

    commit: str | None
    """None where there is no such repository, or no such branch."""
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By path: its SHA-256 (of a large file) or Git's hash, and bytes."""
    private: bool | None = None
    is_branch: bool = True
    """False for the main branch in place of one that does not exist."""


def endpoint() -> str:
    """Name the Hub's address.

    Raises:
        VictorError: If what is sent there could be read on the way.
    """
    from huggingface_hub import constants

    address = constants.ENDPOINT
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise VictorError(
            f"HF_ENDPOINT {address}: what is sent there, your token too, could be read on the way",
            fix="use an address that starts with https://, or unset HF_ENDPOINT",
        )
    return address


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def check_name(repo: str) -> None:
    """Check a repository's name.

    Raises:
        VictorError: If the Hub allows no such name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise VictorError(
            f"{repo}: no name of a repository on the Hub",
            fix="write OWNER/NAME, of at most 96 letters, digits, '-', '_' and '.', neither first "
            "nor last '-' or '.', never '--' or '..', and not ending in .git",
        ) from error


def whole_name(repo: str) -> str:
    """Put the user in front of a name without an owner.

    Raises:
        VictorError: If the Hub does not know the user.
    """
    if "/" in repo:
        return repo
    from huggingface_hub import HfApi

    with explained(repo):
        return f"{patiently(HfApi().whoami)['name']}/{repo}"


def look(repo: str, revision: str | None) -> Remote:
    """List what a repository holds; nothing where it does not exist.

    Raises:
        VictorError: If the Hub does not say.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    with explained(repo):
        try:
            about = patiently(api.model_info, repo, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if error.response.status_code == 401:  # a token that is no good, not: no such model
                raise
            return Remote(None)
        listing = partial(api.list_repo_tree, repo, recursive=True, revision=about.sha)
        tree = patiently(lambda: [*listing()])
    files = {
        entry.path: (entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.size)
        for entry in tree
        if isinstance(entry, RepoFile)
    }
    return Remote(about.sha, files, about.private)


def same(remote: tuple[str, int], content: Path | bytes, sha256: str) -> bool:
    """Say whether a file on the Hub is this one.

    Args:
        remote: Its hash, of either kind, and bytes.
        content: The file here, or what will be in it.
        sha256: Of its content.
    """
    known, length = remote
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size != length:
        return False
    return known == sha256 or (len(known) == 40 and known == git_hash(content))


def git_hash(content: Path | bytes) -> str:
    """Hash as Git does, piece by piece."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def patiently(call: Callable[..., Found], *args: Any, **kwargs: Any) -> Found:
    """Call the Hub, and again after a while where what it answers may pass.

    Uploads of large files, whose errors come wrapped, were tried again by the library already.
    """
    from huggingface_hub.errors import HTTPError

    for attempt in range(1, TRIES + 1):
        try:
            return call(*args, **kwargs)
        except HTTPError as error:
            response = getattr(error, "response", None)  # None where nothing was answered
            if attempt == TRIES or (response is not None and response.status_code not in LATER):
                raise
            wait = _wait(response, attempt)
            reason = "does not answer" if response is None else f"answers {response.status_code}"
            say(f"the Hub {reason}; trying again in {wait:.0f} s", quiet=False)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _wait(response: Any, attempt: int) -> float:
    """Say how many seconds to wait: as long as the Hub asks for, or each time twice as long."""
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), LONGEST) if asked.isdecimal() else WAIT * 2 ** (attempt - 1)


@contextmanager
def bars(*, quiet: bool) -> Iterator[None]:
    """Show how far each file is, unless nothing may be shown."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if not quiet or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Let the Hub's refusals be errors that say what to do.

    Args:
        repo: The repository that is read or written.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise VictorError(
            f"{repo}: HF_HUB_OFFLINE keeps the Hub away", fix="unset HF_HUB_OFFLINE"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise VictorError(f"{repo}: you are not logged in", fix="hf auth login") from error
    except errors.HTTPError as error:
        raise _explained(repo, error) from error
    except (RuntimeError, ValueError, OSError) as error:
        cause = error.__cause__  # of an upload by LFS, or a file that was not to be had
        if isinstance(cause, errors.HTTPError):
            raise _explained(repo, cause) from error
        if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
            raise _refused(repo, 400, str(error)) from error  # a page, or one file of several
        if not isinstance(error, (ConnectionError, PermissionError)):
            raise
        status = STATUS.search(str(error))  # of an upload by Xet
        raise _refused(repo, int(status[0]) if status else None, str(error)) from error


STATUS = re.compile(r"\b[45]\d\d\b")
TOKENS = "https://huggingface.co/settings/tokens"
REFUSALS = {
    400: ("the Hub does not take this", "mend what it names"),
    401: ("the Hub does not know you", "hf auth login, or mend HF_TOKEN where that is set"),
    403: ("your token may not write there", f"use one that may: {TOKENS}, then hf auth login"),
    404: ("no such repository, or none that you may see", "check the name, or: hf auth login"),
    409: ("somebody else changed it meanwhile", "run the command again"),
    412: ("somebody else changed it meanwhile", "run the command again"),
    413: ("more than the Hub takes", "free some storage: https://huggingface.co/settings/billing"),
    429: ("too many requests", "wait some minutes, then run the command again"),
    507: ("your storage is full", "free some: https://huggingface.co/settings/billing"),
}
"""What a status means, and what to do about it."""


def _explained(repo: str, error: Any) -> VictorError:
    if getattr(error, "response", None) is None:
        return _refused(repo, None, type(error).__name__)
    return _refused(repo, error.response.status_code, getattr(error, "server_message", None))


def _refused(repo: str, status: int | None, message: str | None) -> VictorError:
    if status is None:
        return VictorError(
            f"{repo}: the Hub at {endpoint()} does not answer ({message})",
            fix="check the network and the proxy, then run the command again",
        )
    trouble = ("the Hub is in trouble", "run the command again later")
    problem, fix = REFUSALS.get(status, trouble)
    if message and ("storage" in message.lower() or "quota" in message.lower()):
        problem, fix = REFUSALS[507]
    said = f": {' '.join(message.split())[:200]}" if message else ""
    return VictorError(f"{repo}: {problem} ({status}{said})", fix=fix)
