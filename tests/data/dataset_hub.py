"""A Hub on this machine that serves data sets."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests import hub


class DatasetHub:
    """Serves `folders`, by Hub id; remembers which files were fetched, and how much of them."""

    def __init__(self, folders: dict[str, Path], commit: str = hub.COMMIT) -> None:
        self.folders, self.commit, self.fetched = folders, commit, []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch, cache: Path, folders: dict[str, Path]
) -> Iterator[DatasetHub]:
    """Let this process know no other Hub, with empty caches of its own."""
    import datasets

    served = DatasetHub(folders)
    hub.aim(monkeypatch, cache, served.url)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(
        datasets.config, "HUB_DATASETS_URL",
        served.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
    )  # fmt: skip
    monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)
    threading.Thread(target=served.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: DatasetHub

    def do_GET(self) -> None:
        parts = unquote(self.path.partition("?")[0]).removeprefix("/api").strip("/").split("/")
        folder = self.hub.folders.get("/".join(parts[1:3]))
        if folder is None:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif not self.path.startswith("/api/"):
            self._file(folder, parts[3:])
        elif parts[3:4] == ["tree"]:
            self._json([self._entry(folder, file) for file in sorted(folder.rglob("*"))])
        else:
            self._json({"id": "/".join(parts[1:3]), "sha": self.hub.commit, "siblings": []})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Tell about paths."""
        parts = unquote(self.path).removeprefix("/api/").strip("/").split("/")
        folder = self.hub.folders["/".join(parts[1:3])]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        there = [folder / path for path in asked["paths"]]
        self._json([self._entry(folder, path) for path in there if path.exists()])

    def _entry(self, folder: Path, path: Path) -> dict[str, object]:
        about = {"path": path.relative_to(folder).as_posix(), "oid": 40 * "0"}
        if path.is_dir():
            return about | {"type": "directory"}
        return about | {"type": "file", "size": path.stat().st_size}

    def _file(self, folder: Path, rest: list[str]) -> None:
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hub._hash(file)}"', "X-Repo-Commit": self.hub.commit}
        body, status = file.read_bytes(), 200
        if asked := self.headers.get("Range"):
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            body, status = body[int(start) : int(stop) + 1 if stop else None], 206
        if self.command == "GET":
            self.hub.fetched.append((file.name, len(body)))
        self._answer(status, headers, body)

    def _json(self, content: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
