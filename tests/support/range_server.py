"""A real HTTP server on loopback for downloads: honours Range or not, and can cut the connection in the middle."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Served:
    """What the server serves, how it behaves, and what it saw; ``cut_after_bytes`` has one entry per request."""

    body: bytes
    honours_range: bool = True
    status: int = 200
    cut_after_bytes: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    sent_bytes: list[int] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(served: Served) -> Iterator[Served]:
    """Serve ``served`` at its ``url`` while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, served)

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/a.whl"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, served: Served) -> None:
    wanted = handler.headers.get("Range")
    served.ranges.append(wanted)
    if served.status != 200:
        handler.send_error(served.status)
        return
    start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and served.honours_range else 0
    if start >= len(served.body):
        handler.send_error(416)
        return
    rest = served.body[start:]
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(served.body) - 1}/{len(served.body)}")
    handler.send_header("Content-Length", str(len(rest)))
    handler.end_headers()
    cut = served.cut_after_bytes.pop(0) if served.cut_after_bytes else len(rest)
    handler.wfile.write(rest[:cut])
    served.sent_bytes.append(len(rest[:cut]))
