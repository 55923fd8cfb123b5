"""A Hub on 127.0.0.1 that serves folders: what huggingface_hub and datasets ask of it to read a repository."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class LoopbackHub:
    """Serves `folder/models/OWNER/NAME` and `folder/datasets/OWNER/NAME` as repositories of one commit each.

    Their only branch is main. A commit's name is made of the files' contents. `requests` has every request line.
    """

    def __init__(self, folder: Path):
        self.folder, self.requests = folder, []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a client process whose cache is `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def commit(self, repository: Path) -> str:
        digest = hashlib.sha1()
        for name, path in files_of(repository).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()


def files_of(repository: Path) -> dict[str, Path]:
    return {path.relative_to(repository).as_posix(): path for path in sorted(repository.rglob("*")) if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(self.requestline)
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/(.*))?)?", path):
            kind, name, what, rest = match.groups()
            self._api(kind, name, what, rest or "")
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = match.groups()
            self._file(self._repository("datasets" if kind else "models", name, revision), file)
        else:
            self._missing("EntryNotFound")

    def do_POST(self) -> None:
        self.hub.requests.append(self.requestline)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        match = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", unquote(self.path))
        if match is None:
            self._missing("EntryNotFound")
            return
        repository = self._repository(*match.groups())
        if repository is None:
            return
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self._json([entry for entry in self._entries(repository) if entry["path"] in wanted])

    def _repository(self, kind: str, name: str, revision: str) -> Path | None:
        repository = self.hub.folder / kind / name
        if not repository.is_dir():
            self._missing("RepoNotFound")
        elif revision not in ("main", self.hub.commit(repository)):
            self._missing("RevisionNotFound")
        else:
            return repository
        return None

    def _api(self, kind: str, name: str, what: str | None, rest: str) -> None:
        revision, _, below = rest.partition("/")
        repository = self._repository(kind, name, revision if what in ("revision", "tree") else "main")
        if repository is None:
            return
        commit = self.hub.commit(repository)
        if what == "refs":
            self._json({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}], "tags": []})
        elif what == "tree":
            is_deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            inside = f"{below}/" if below else ""
            entries = [entry for entry in self._entries(repository) if entry["path"].startswith(inside)]
            if inside and not entries:
                self._missing("EntryNotFound")
                return
            self._json([entry for entry in entries if is_deep or "/" not in entry["path"].removeprefix(inside)])
        else:
            siblings = [{"rfilename": file} for file in files_of(repository)]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "gated": False})

    @staticmethod
    def _entries(repository: Path) -> list[dict]:
        files = files_of(repository)
        folders = sorted({parent.as_posix() for file in files for parent in Path(file).parents} - {"."})
        return [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders] + [
            {
                "type": "file",
                "path": file,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                "size": path.stat().st_size,
            }
            for file, path in files.items()
        ]

    def _file(self, repository: Path | None, file: str) -> None:
        if repository is None:
            return
        path = files_of(repository).get(file)
        if path is None:
            self._missing("EntryNotFound", {"X-Repo-Commit": self.hub.commit(repository)})
            return
        content, status, headers = path.read_bytes(), 200, {}
        etag = hashlib.sha1(content).hexdigest()
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        headers |= {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit(repository), "Accept-Ranges": "bytes"}
        self._send(status, content, "application/octet-stream", headers)

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), "application/json", {})

    def _missing(self, code: str, headers: dict | None = None) -> None:
        self._send(404, b"{}", "application/json", {"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, content: bytes, kind: str, headers: dict) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
