"""A Hub on this machine that serves folders, and errors as the real one words them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" + 34 * "0"


class Hub:
    """Serves `models`: Hub id to folder or name of an error; remembers what was fetched."""

    def __init__(self, models: dict[str, Path | str]) -> None:
        self.models, self.fetched = models, []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch, cache: Path, models: dict[str, Path | str]
) -> Iterator[Hub]:
    """Let this process know no other Hub, with an empty cache of its own."""
    with Hub(models) as hub:
        aim(monkeypatch, cache, hub.url)
        yield hub


def aim(monkeypatch: pytest.MonkeyPatch, cache: Path, url: str) -> None:
    """Let this process know no other Hub than that at an address, with a cache of its own."""
    for scheme in ("http", "https", "all"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    address = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        found = self.hub.models.get("/".join(parts[:2]))
        if path.startswith("api/") and not api:
            self._answer(404)
        elif found is None:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif isinstance(found, str):
            self._answer(403, {"X-Error-Code": found})
        elif api:
            self._about(found, parts[2:])
        else:
            self._file(found, parts[2:])

    do_HEAD = do_GET  # noqa: N815

    def _about(self, folder: Path, rest: list[str]) -> None:
        if rest[1:] and rest[1] not in ("main", COMMIT):
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            tree = [
                {
                    "type": "file",
                    "path": file.relative_to(folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": _hash(file),
                }
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ]
            self._answer(200, body=json.dumps(tree).encode())
        else:
            about = {"id": "x", "sha": COMMIT, "siblings": [], "private": False, "tags": []}
            self._answer(200, body=json.dumps(about).encode())

    def _file(self, folder: Path, rest: list[str]) -> None:
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.hub.fetched.append("/".join(rest[2:]))
        headers = {"ETag": f'"{_hash(file)}"', "X-Repo-Commit": COMMIT}
        self._answer(200, headers, file.read_bytes())

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        if status == 200 and (asked := self.headers.get("Range")):
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            body, status = body[int(start) : int(stop) + 1 if stop else None], 206
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
