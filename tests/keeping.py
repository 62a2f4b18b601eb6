"""A Hub on this machine that keeps what it receives, and fails where a test asks it to.

It speaks the routes that huggingface_hub calls: who am I, repositories, branches, trees, files,
uploads of large files (LFS), and commits. Large are *.safetensors and *.png.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_ada"
IGNORED = "none"  # a file that a .gitignore leaves out
LARGE = (".safetensors", ".png")


@dataclass
class Repo:
    """Branches and commits of one repository."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pulls: int = 0
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        """Keep a state, and name it."""
        self.messages.append(message)
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def find(self, revision: str) -> str | None:
        """Name the commit of a branch or a commit."""
        known = self.branches | dict(zip(self.commits, self.commits, strict=True))
        return known.get(revision)


@dataclass
class Fault:
    """What goes wrong at a route, so many times, after it went well so many times."""

    route: str
    status: int = 500
    times: int = 10**9
    after: int = 0
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    late: bool = False
    """The request is carried out, and fails only then."""


class Keeping:
    """The Hub; `repos` is what it keeps, `asked` what it was asked, as method and path."""

    def __init__(self, owner: str = "ada") -> None:
        self.owner, self.repos, self.blobs = owner, {}, {}
        self.asked: list[str] = []
        self.faults: list[Fault] = []
        self.got = 0  # bytes of large files
        self.stall = threading.Event()
        self.stall.set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Keeping":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stall.set()
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Give what a repository holds."""
        found = self.repos[repo]
        return found.commits[found.find(revision)]

    def state(self) -> dict[str, object]:
        """Give all that a failed push must not change: what every branch holds."""
        return {name: dict(repo.branches) for name, repo in self.repos.items()}

    def make(self, repo: str, files: dict[str, bytes] | None = None, **more: object) -> Repo:
        """Make a repository, as the real one does with a first commit."""
        made = self.repos[repo] = Repo(**more)
        made.branches["main"] = made.commit({".gitattributes": b"", **(files or {})}, "first")
        return made

    def fault(self, method: str, path: str) -> Fault | None:
        """Find what is to go wrong now."""
        for fault in self.faults:
            if re.search(fault.route, f"{method} {path}") and fault.times > 0:
                if fault.after > 0:
                    fault.after -= 1
                else:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Keeping
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {self.route}")
        fault = self.hub.fault(self.command, self.route)
        if fault and not fault.late:
            said = {"error": fault.message or f"fault {fault.status}"}
            self.answer(fault.status, said, fault.headers)
            return
        self.muted = fault
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {self.route}"):
                getattr(self, method)(*match.groups())
                return
        self.answer(404, {"error": "no such route"})

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve  # noqa: N815

    # ---- Who, and repositories -------------------------------------------------------------------

    def allowed(self) -> bool:
        """Refuse who has no token, or another."""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not known:
            self.answer(401, {"error": "Invalid username or password."})
        return known

    def whoami(self) -> None:
        if self.allowed():
            self.answer(200, {"name": self.hub.owner, "type": "user", "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.hub.owner}/{asked['name']}"
        if not self.allowed():
            return
        if name in self.hub.repos:
            said = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            self.answer(409, said)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.make(name, private=bool(private))
        self.answer(200, {"url": f"{self.hub.url}/{name}", "id": name})

    def repo(self, name: str, revision: str = "main") -> tuple[Repo, str] | None:
        """Find a repository and a commit, or say what is missing."""
        found = self.hub.repos.get(name)
        if found is None or (found.private and not self.headers.get("Authorization")):
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = found.find(revision)
        if commit is None:
            code = {"X-Error-Code": "RevisionNotFound"}
            self.answer(404, {"error": f"Invalid rev id: {revision}"}, code)
            return None
        return found, commit

    def about(self, name: str, revision: str | None = None) -> None:
        if found := self.repo(name, revision or "main"):
            repo, commit = found
            card = repo.commits[commit].get("README.md", b"").decode()
            named = dict(re.findall(r"^(license\w*): (\S+)$", card, re.MULTILINE))
            about = {"id": name, "sha": commit, "private": repo.private, "tags": [], "siblings": []}
            if named:
                about["cardData"] = named
            self.answer(200, about)

    def tree(self, name: str, revision: str) -> None:
        if found := self.repo(name, revision):
            repo, commit = found
            self.answer(200, [_entry(*item) for item in sorted(repo.commits[commit].items())])

    def branch(self, name: str, branch: str) -> None:
        if not self.allowed() or not (found := self.repo(name)):
            return
        repo, commit = found
        if self.command == "DELETE":
            repo.branches.pop(branch, None)
        elif branch in repo.branches:
            self.answer(409, {"error": "Reference already exists"})
            return
        else:
            repo.branches[branch] = commit
        self.answer(200, {})

    # ---- Files -----------------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self.repo(name, revision)):
            return
        repo, commit = found
        content = repo.commits[commit].get(path)
        if content is None:
            code = {"X-Error-Code": "EntryNotFound"}
            self.answer(404, {"error": "Entry not found"}, code)
            return
        entry = _entry(path, content)
        tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        status, headers = 200, {"ETag": f'"{tag}"', "X-Repo-Commit": commit}
        if asked := self.headers.get("Range"):
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            content, status = content[int(start) : int(stop) + 1 if stop else None], 206
        self.answer(status, content, headers)

    def validate(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if not self.allowed() or not (found := self.repo(name, revision)):
            return
        repo, commit = found
        files = []
        for file in json.loads(self.body)["files"]:
            path, known = file["path"], repo.commits[commit].get(file["path"])
            mode = "lfs" if path.endswith(LARGE) else "regular"
            entry = {"path": path, "uploadMode": mode, "shouldIgnore": path == IGNORED}
            if known is not None:
                old = _entry(path, known)
                entry["oid"] = old["lfs"]["oid"] if "lfs" in old else old["oid"]
            files.append(entry)
        self.answer(200, {"files": files})

    def batch(self, name: str) -> None:
        if not self.allowed():
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            wanted = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.url}/_lfs/{item['oid']}", "header": {}}
                wanted["actions"] = {"upload": upload}
            objects.append(wanted)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        self.hub.stall.wait(60)
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self.hub.got += len(self.body)
        self.answer(200, {})

    def commit(self, name: str, revision: str) -> None:
        if not self.allowed() or not (found := self.repo(name, revision)):
            return
        repo, parent = found
        header, files = self.changed(dict(repo.commits[parent]))
        if header.get("parentCommit") not in (None, parent):
            self.answer(412, {"error": "A commit has happened since. Please refresh."})
            return
        oid = repo.commit(files, header["summary"])
        made = {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid}
        made["pullRequestUrl"] = self.put_on(repo, oid, name, revision)
        self.answer(200, {"success": True, **made})

    def changed(self, files: dict[str, bytes]) -> tuple[dict[str, str], dict[str, bytes]]:
        """Read what a commit says, and what it makes of the files."""
        header = {}
        for line in map(json.loads, self.body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return header, files

    def put_on(self, repo: Repo, oid: str, name: str, revision: str) -> str | None:
        """Let a branch, or a new pull request, be at a commit."""
        if "create_pr" not in self.query:
            repo.branches[revision] = oid
            return None
        repo.pulls += 1
        repo.branches[f"refs/pr/{repo.pulls}"] = oid
        return f"{self.hub.url}/{name}/discussions/{repo.pulls}"

    def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        """Answer, or fail though all is done."""
        if getattr(self, "muted", None):
            status, content, headers = self.muted.status, {"error": "late"}, {}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status >= 400:
            self.send_header("X-Error-Message", json.loads(body)["error"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/models/{NAME}", "about"),
    (rf"GET /api/models/{NAME}/revision/(.+)", "about"),
    (rf"GET /api/models/{NAME}/tree/([^/]+)", "tree"),
    (rf"(?:POST|DELETE) /api/models/{NAME}/branch/(.+)", "branch"),
    (rf"POST /api/models/{NAME}/preupload/(.+)", "preupload"),
    (rf"POST /api/models/{NAME}/commit/(.+)", "commit"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /_lfs/(\w+)", "put"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


def _entry(path: str, content: bytes) -> dict[str, object]:
    """Describe a file as a tree does."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LARGE):
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
        entry["lfs"] = lfs
    return entry
