"""An S3 server in this process: what boto3 needs to list, read by ranges, and write, with faults on demand.

Covers: ListObjectsV2, GET with Range and If-Match, HEAD, PUT, multipart uploads, DELETE. Objects are kept in memory.
Credentials are not checked.
"""

import hashlib
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
PAGE_KEYS = 5  # few, so that paging is always exercised
BLOCK_BYTES = 1 << 20


@dataclass
class S3Server:
    """Objects by ``bucket/key``. The next ``len(faults)`` reads of objects meet the faults, in order.

    A fault is an HTTP status, ``"cut"`` (half of the answer, then the connection ends), or ``"replace"`` (the object is
    replaced before the read).
    """

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[int | str] = field(default_factory=list)
    bytes_per_s: float | None = None
    requests: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def next_fault(self) -> int | str | None:
        with self.lock:
            return self.faults.pop(0) if self.faults else None


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    state = S3Server()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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


@lru_cache(maxsize=1024)
def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'  # noqa: S324 - what S3 does


class _Handler(BaseHTTPRequestHandler):
    state: S3Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        bucket, key, query = self._target()
        if not key:
            self._list(bucket, query)
        else:
            self._get(f"{bucket}/{key}")

    def do_HEAD(self) -> None:
        bucket, key, _ = self._target()
        content = self.state.objects.get(f"{bucket}/{key}")
        if content is None:
            self._answer(404)
        else:
            self._answer(200, b"", {"ETag": etag(content), "Content-Length": str(len(content))})

    def do_PUT(self) -> None:
        bucket, key, query = self._target()
        body = self._body()
        self.state.requests["PUT"] += 1
        if "uploadId" in query:
            self.state.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            self.state.objects[f"{bucket}/{key}"] = body
        self._answer(200, b"", {"ETag": etag(body)})

    def do_POST(self) -> None:
        bucket, key, query = self._target()
        self._body()
        if "uploads" in query:
            upload = secrets.token_hex(8)
            self.state.uploads[upload] = {}
            self._xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
            return
        parts = self.state.uploads.pop(query["uploadId"][0])
        content = b"".join(parts[number] for number in sorted(parts))
        self.state.objects[f"{bucket}/{key}"] = content
        self._xml("CompleteMultipartUploadResult", f"<ETag>{escape(etag(content))}</ETag>")

    def do_DELETE(self) -> None:
        bucket, key, _ = self._target()
        self.state.objects.pop(f"{bucket}/{key}", None)
        self._answer(204)

    def _get(self, name: str) -> None:
        self.state.requests["GET"] += 1
        fault = self.state.next_fault()
        if fault == "replace":
            self.state.objects[name] = bytes(reversed(self.state.objects[name]))
        if isinstance(fault, int):
            self._error(fault, HTTPStatus(fault).phrase.replace(" ", ""))
            return
        content = self.state.objects.get(name)
        if content is None:
            self._error(404, "NoSuchKey")
            return
        if self.headers.get("If-Match", etag(content)) != etag(content):
            self._error(412, "PreconditionFailed")
            return
        self._send(content, cut=fault == "cut")

    def _send(self, content: bytes, *, cut: bool) -> None:
        start, end, status = 0, len(content), 200
        headers = {"ETag": etag(content)}
        if match := _RANGE.fullmatch(self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            end = min(int(match[2]) + 1, len(content)) if match[2] else len(content)
            if start >= len(content):
                self._error(416, "InvalidRange")
                return
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(end - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        view = memoryview(content)[start : start + (end - start) // 2 if cut else end]
        # First: whoever has read everything may look at once.
        self._count(len(view))
        try:
            for offset in range(0, len(view), BLOCK_BYTES):
                block = view[offset : offset + BLOCK_BYTES]
                if self.state.bytes_per_s:
                    time.sleep(len(block) / self.state.bytes_per_s)
                self.wfile.write(block)
        except OSError:
            self._count(-len(view))
            raise
        if cut:
            self.close_connection = True

    def _count(self, read_bytes: int) -> None:
        with self.state.lock:
            self.state.read_bytes += read_bytes

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        self.state.requests["LIST"] += 1
        prefix = query.get("prefix", [""])[0]
        keys = sorted(name.removeprefix(f"{bucket}/") for name in self.state.objects if name.startswith(f"{bucket}/"))
        if not keys:
            self._error(404, "NoSuchBucket")
            return
        after = query.get("continuation-token", [""])[0]
        keys = [key for key in keys if key.startswith(prefix) and key > after]
        page, more = keys[:PAGE_KEYS], len(keys) > PAGE_KEYS
        inner = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            inner += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        for key in page:
            content = self.state.objects[f"{bucket}/{key}"]
            inner += f"<Contents><Key>{escape(key)}</Key><ETag>{escape(etag(content))}</ETag>"
            inner += f"<Size>{len(content)}</Size></Contents>"
        self._xml("ListBucketResult", inner)

    def _target(self) -> tuple[str, str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Content-Encoding", "") or self.headers.get("x-amz-decoded-content-length"):
            message = "signed chunks are not understood: let the client send plain bodies"
            raise NotImplementedError(message)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _xml(self, root: str, inner: str) -> None:
        self._answer(200, f'<?xml version="1.0"?><{root}>{inner}</{root}>'.encode(), {"Content-Type": "text/xml"})

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
