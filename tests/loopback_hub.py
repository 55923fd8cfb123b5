"""A Hub on 127.0.0.1: what huggingface_hub, transformers and datasets request to read and write repositories.

    hub = LoopbackHub(folder, users={"hf_of_the_lab": "lab"})
    HfApi(endpoint=hub.endpoint, token="hf_of_the_lab").create_repo("lab/model", private=True)

It keeps commits, branches and tags as the Hub does, checks access tokens, and can be killed in the middle of a request.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_ENDINGS = (".safetensors", ".parquet", ".arrow", ".bin", ".pt", ".png")


class LoopbackHub:
    """Repositories that are folders, `folder/models/OWNER/NAME` and `folder/datasets/OWNER/NAME`, or that are pushed.

    A folder has one commit, on the branch main, and is public. What is pushed has a history. Users may write to
    repositories under their own name only.

    Attributes:
        users: user names by access token.
        readers: tokens for reading only.
        organisations: names of the organisations of a user.
        repositories: by kind and name, what was pushed.
        requests: every request line.
        received: all that came in, request by request, without the Authorization header.
        uploads: checksums of large files in the order in which they came in whole.
    """

    def __init__(self, folder: Path, users: dict[str, str] | None = None):
        self.folder, self.users, self.requests = folder, dict(users or {}), []
        self.readers: set[str] = set()
        self.organisations: dict[str, list[str]] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.received: list[bytes] = []
        self.uploads: list[str] = []
        self._break: tuple[str, int] | None = None
        self._port = 0
        self.connections: set = set()
        self.start()

    def start(self) -> None:
        """Answer requests, after a stop on the same port as before."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = self.server.server_port
        self.endpoint = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Close all connections, in the middle of requests too, and accept no more."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(2)
            except OSError:
                continue

    def break_at(self, request: str, num_bytes: int = 0) -> None:
        """Stop when a request comes in whose line matches `request`, after so many bytes of its body."""
        self._break = (request, num_bytes)

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a client process with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def answer_here(self, monkeypatch, cache: Path) -> None:
        """Make the client in this process use this Hub, with `cache`."""
        changes = {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(cache), "ENDPOINT": self.endpoint}
        changes["HUGGINGFACE_CO_URL_TEMPLATE"] = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in changes.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    def files(self, name: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.find(kind, name)
        return repository.commits[repository.resolve(revision)].files

    def find(self, kind: str, name: str) -> "Repository | None":
        if (kind, name) in self.repositories:
            return self.repositories[kind, name]
        folder = self.folder / kind / name
        if not folder.is_dir():
            return None
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        return Repository(name, commits={commit: Commit("folder", files)}, branches={"main": commit})


@dataclass
class Commit:
    title: str
    files: dict[str, bytes]
    parent: str | None = None


@dataclass
class Repository:
    """Commits, and the branches and tags that name them."""

    name: str
    is_private: bool = False
    gated: str | bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    def history(self, commit: str) -> list[Commit]:
        found = []
        while commit is not None:
            found.append(self.commits[commit])
            commit = found[-1].parent
        return found

    def add(self, branch: str, title: str, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(f"{self.name} {branch} {title} {len(self.commits)}".encode()).hexdigest()
        self.commits[name] = Commit(title, files, self.branches.get(branch))
        self.branches[branch] = name
        return name


class _Answered(Exception):
    """Nothing more is to be done for a request."""


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        try:
            super().finish()
        except (OSError, ValueError):
            return

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD

    def _answer(self) -> None:
        try:
            self.hub.requests.append(self.requestline)
            self.query = parse_qs(urlsplit(self.path).query)
            self.body = self._read_body()
            headers = [pair for pair in self.headers.items() if pair[0].lower() != "authorization"]
            lines = "".join(f"{name}: {value}\n" for name, value in headers)
            self.hub.received.append(f"{self.requestline}\n{lines}\n".encode() + self.body)
            verb = "GET" if self.command == "HEAD" else self.command
            for wanted, pattern, route in ROUTES:
                # A branch with a slash is quoted, and so stays one part of the path.
                if wanted == verb and (match := re.fullmatch(pattern, urlsplit(self.path).path)):
                    route(self, *(part and unquote(part) for part in match.groups()))
                    raise _Answered
            self._refuse(404, "EntryNotFound")
        except _Answered:
            pass
        except ConnectionError:
            self.close_connection = True

    def _read_body(self) -> bytes:
        breaks = self.hub._break
        limit = breaks[1] if breaks is not None and re.search(breaks[0], self.requestline) else None
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if limit is not None and len(body) >= limit:
                    self._hang_up()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        if limit is not None:
            self.rfile.read(min(limit, length))
            self._hang_up()
        return self.rfile.read(length)

    def _hang_up(self) -> None:
        self.hub._break = None
        self.hub.stop()
        raise ConnectionError

    # --- permissions

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip() or None

    def _user(self) -> str | None:
        return self.hub.users.get(self._token)

    def _repository(self, kind: str, name: str, for_content: bool = False) -> Repository:
        if self._token is not None and self._token not in self.hub.users:
            self._refuse(401)
        repository = self.hub.find(kind, name)
        is_owner = self._user() == name.split("/")[0]
        if repository is None or (repository.is_private and not is_owner):
            self._refuse(404 if self._token else 401, "RepoNotFound")
        if repository.gated and for_content and not is_owner:
            self._refuse(403 if self._token else 401, "GatedRepo")
        return repository

    def _check_may_write(self, owner: str) -> None:
        if self._user() is None:
            self._refuse(401)
        if self._token in self.hub.readers or self._user() != owner:
            self._refuse(403)

    def _writable(self, kind: str, name: str) -> Repository:
        repository = self._repository(kind, name)
        self._check_may_write(name.split("/")[0])
        return self.hub.repositories.setdefault((kind, name), repository)

    def _commit(self, repository: Repository, revision: str) -> str:
        return repository.resolve(revision) or self._refuse(404, "RevisionNotFound")

    def _files(self, repository: Repository, revision: str) -> dict[str, bytes]:
        return repository.commits[self._commit(repository, revision)].files

    # --- reading

    def whoami(self) -> None:
        if self._user() is None:
            self._refuse(401)
        token = {"displayName": "tests", "role": "read" if self._token in self.hub.readers else "write"}
        orgs = [{"type": "org", "name": name} for name in self.hub.organisations.get(self._user(), ())]
        self._json({"type": "user", "name": self._user(), "orgs": orgs, "auth": {"accessToken": token}})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self._repository(kind, name)
        facts = {"id": name, "sha": self._commit(repository, revision), "tags": []}
        facts |= {"private": repository.is_private, "gated": repository.gated}
        self._json(facts | {"siblings": [{"rfilename": file} for file in sorted(self._files(repository, revision))]})

    def refs(self, kind: str, name: str) -> None:
        repository, found = self._repository(kind, name), {"converts": []}
        for folder, what, names in (("heads", "branches", repository.branches), ("tags", "tags", repository.tags)):
            found[what] = [
                {"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": at} for ref, at in names.items()
            ]
        self._json(found)

    def tree(self, kind: str, name: str, revision: str, below: str | None = None) -> None:
        is_deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        inside = f"{below}/" if below else ""
        entries = _entries(self._files(self._repository(kind, name), revision))
        entries = [entry for entry in entries if entry["path"].startswith(inside)]
        if inside and not entries:
            self._refuse(404, "EntryNotFound")
        self._json([entry for entry in entries if is_deep or "/" not in entry["path"].removeprefix(inside)])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        files, body = self._files(self._repository(kind, name), revision), self.body.decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self._json([entry for entry in _entries(files) if entry["path"] in wanted])

    def file(self, is_dataset: str | None, name: str, revision: str, file: str) -> None:
        repository = self._repository("datasets" if is_dataset else "models", name, for_content=True)
        headers = {"X-Repo-Commit": self._commit(repository, revision), "Accept-Ranges": "bytes"}
        content, status = self._files(repository, revision).get(file), 200
        if content is None:
            self._refuse(404, "EntryNotFound", headers)
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers)

    # --- writing

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self._user()
        self._check_may_write(owner)
        kind, name = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
        repository = Repository(name, asked.get("private", False) or asked.get("visibility") == "private")
        repository.add("main", "initial commit", {".gitattributes": b""})
        self.hub.repositories.setdefault((kind, name), repository)
        self._json({"url": f"{self.hub.endpoint}/{'datasets/' * (kind == 'datasets')}{name}", "name": name})

    def settings(self, kind: str, name: str) -> None:
        self._writable(kind, name).gated = json.loads(self.body)["gated"]
        self._json({})

    def validate_yaml(self) -> None:
        fields = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
        self._json({"errors": [] if fields else [{"message": "no metadata"}], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        files, answers = self._files(self._writable(kind, name), revision), []
        for file in json.loads(self.body)["files"]:
            is_large = file["path"].endswith(LFS_ENDINGS) or file["size"] > 10 * 2**20
            oid = None
            if (content := files.get(file["path"])) is not None:
                as_git = f"blob {len(content)}\0".encode() + content
                oid = (hashlib.sha256(content) if is_large else hashlib.sha1(as_git)).hexdigest()
            mode = "lfs" if is_large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def large_files(self, is_dataset: str | None, name: str) -> None:
        self._writable("datasets" if is_dataset else "models", name)
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large_files:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/large-files/{wanted['oid']}"}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def put_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._refuse(400)
        self.hub.large_files[oid] = self.body
        self.hub.uploads.append(oid)
        self._send(200, b"")

    def commit(self, kind: str, name: str, branch: str) -> None:
        repository = self._writable(kind, name)
        files, title = dict(self._files(repository, branch)), ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large_files[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"])
        made = repository.add(branch, title, files)
        url = f"{self.hub.endpoint}/{'datasets/' * (kind == 'datasets')}{name}/commit/{made}"
        self._json({"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})

    def branch(self, kind: str, name: str, branch: str) -> None:
        repository = self._writable(kind, name)
        repository.branches.setdefault(branch, repository.branches["main"])
        self._json({})

    def tag(self, kind: str, name: str, revision: str) -> None:
        repository = self._writable(kind, name)
        repository.tags[json.loads(self.body)["tag"]] = repository.resolve(revision)
        self._json({})

    # --- answers

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode())

    def _refuse(self, status: int, code: str | None = None, headers: dict[str, str] | None = None) -> NoReturn:
        headers = (headers or {}) | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": code}).encode(), headers)
        raise _Answered

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(files: dict[str, bytes]) -> list[dict]:
    folders = sorted({parent.as_posix() for file in files for parent in Path(file).parents} - {"."})
    return [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders] + [
        {"type": "file", "path": file, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
        for file, content in sorted(files.items())
    ]


_API = r"/api/(models|datasets)/([^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", rf"{_API}", _Handler.info),
    ("GET", rf"{_API}/revision/([^/]+)", _Handler.info),
    ("GET", rf"{_API}/refs", _Handler.refs),
    ("GET", rf"{_API}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    ("POST", rf"{_API}/paths-info/([^/]+)", _Handler.paths_info),
    ("PUT", rf"{_API}/settings", _Handler.settings),
    ("POST", rf"{_API}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"{_API}/branch/([^/]+)", _Handler.branch),
    ("POST", rf"{_API}/tag/([^/]+)", _Handler.tag),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.large_files),
    ("PUT", r"/large-files/([0-9a-f]{64})", _Handler.put_large_file),
    ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.file),
)
