"""A server that speaks the part of the Hugging Face hub's API that reading a repository takes."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class HubServer:
    """Repositories: ``org/name`` → commit → path → content; ``branches`` name commits. Faults as in ``S3Server``."""

    url: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    faults: list[int | str] = field(default_factory=list)

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit to ``main``; returns its id."""
        commits = self.repositories.setdefault(repository, {})
        commit = hashlib.sha1(json.dumps([repository, len(commits)]).encode()).hexdigest()  # noqa: S324 - as git does
        commits[commit] = dict(files)
        self.branches[f"{repository}@main"] = commit
        return commit


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    state = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := _TREE.fullmatch(path):
            self._tree(match[1], match[2])
        elif match := _INFO.fullmatch(path):
            self._info(match[1], match[2] or "main")
        elif match := _FILE.fullmatch(path):
            self._file(match[1], match[2], match[3])
        else:
            self._error(404, "EntryNotFound")

    def _files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        commits = self.state.repositories.get(repository)
        if commits is None:
            self._error(404, "RepoNotFound")
            return None
        files = commits.get(self.state.branches.get(f"{repository}@{revision}", revision))
        if files is None:
            self._error(404, "RevisionNotFound")
        return files

    def _info(self, repository: str, revision: str) -> None:
        if self._files(repository, revision) is not None:
            commit = self.state.branches.get(f"{repository}@{revision}", revision)
            self._json({"id": repository, "modelId": repository, "sha": commit, "siblings": []})

    def _tree(self, repository: str, revision: str) -> None:
        files = self._files(repository, revision)
        if files is not None:
            self._json([_entry(path, content) for path, content in files.items()])

    def _file(self, repository: str, revision: str, path: str) -> None:
        files = self._files(repository, revision)
        if files is None:
            return
        fault = self.state.faults.pop(0) if self.state.faults else None
        if isinstance(fault, int):
            self._error(fault, HTTPStatus(fault).phrase)
            return
        if path not in files:
            self._error(404, "EntryNotFound")
            return
        if fault == "replace":
            files[path] += b"more"
        content, match = files[path], _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (int(match[1]), min(int(match[2]) + 1, len(content))) if match else (0, len(content))
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        body = content[start:end]
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        self.close_connection = fault == "cut"

    def _json(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),  # noqa: S324 - as git does
    }
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry
