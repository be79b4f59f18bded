"""Serves the files of a directory as one S3 bucket, by sendfile, so that the server is not what is measured.

Usage: python s3_files.py DIRECTORY [BYTES_PER_S]; prints its URL. Reads only: listing, HEAD, GET with Range. How many
bytes of files it has sent, ``/sent-bytes`` says.
"""

import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

RANGE = re.compile(r"bytes=(\d+)-(\d*)")
PIECE_BYTES = 1 << 20


class Pace:
    """Holds all connections together to ``bytes_per_s``; 0 is no limit."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_s = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, size_bytes: int) -> None:
        time.sleep(self.pause_s(size_bytes))

    def pause_s(self, size_bytes: int) -> float:
        """How long who sends so many bytes now has to wait."""
        if not self._bytes_per_s:
            return 0.0
        with self._lock:
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_s
            return self._free_at_s - now_s


class Handler(BaseHTTPRequestHandler):
    """One connection; ``directory`` and ``pace`` are set on the class."""

    directory: Path
    pace: Pace
    sent_bytes = 0
    counting = threading.Lock()
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/sent-bytes":
            text = str(Handler.sent_bytes).encode()
            self.head(200, len(text))
            self.wfile.write(text)
            return
        key = unquote(urlsplit(self.path).path).strip("/").partition("/")[2]
        if key:
            self.send_file(self.directory / key)
        else:
            self.list_files()

    def do_HEAD(self) -> None:
        self.do_GET()

    def list_files(self) -> None:
        paths = sorted(path for path in self.directory.rglob("*") if path.is_file())
        inner = "".join(
            f"<Contents><Key>{path.relative_to(self.directory).as_posix()}</Key><Size>{path.stat().st_size}</Size>"
            f"<ETag>{etag(path)}</ETag></Contents>"
            for path in paths
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{inner}</ListBucketResult>"
        self.head(200, len(text))
        self.wfile.write(text.encode())

    def send_file(self, path: Path) -> None:
        size_bytes = path.stat().st_size
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        end = int(match[2]) + 1 if match and match[2] else size_bytes
        headers = {"ETag": etag(path), "Content-Range": f"bytes {start}-{end - 1}/{size_bytes}"}
        self.head(206 if match else 200, end - start, headers)
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            while start < end:
                piece = min(PIECE_BYTES, end - start)
                self.pace.wait(piece)
                sent = os.sendfile(self.connection.fileno(), file.fileno(), start, piece)
                start += sent
                with self.counting:
                    Handler.sent_bytes += sent

    def head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(length)} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def etag(path: Path) -> str:
    status = path.stat()
    return f'"{status.st_ino:x}-{status.st_mtime_ns:x}"'


def main() -> None:
    Handler.directory = Path(sys.argv[1])
    Handler.pace = Pace(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
