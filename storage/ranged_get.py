"""Ranged GETs straight into memory: a connection for each thread, and nothing between its socket and the target.

HTTP clients read into memory of their own and copy from there, twice in urllib3; where the network is fast that is as
much work as the transfer itself. Covers: the connections and the range. Does not cover: what a refusal means, and
when to ask again.
"""

import http.client
import ssl
import threading
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

_MAX_REFUSAL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Refusal:
    """An answer that is not the range: its HTTP status, and the beginning of its body."""

    status: int
    body: bytes


class RangeCutError(Exception):
    """The connection ended after ``done_bytes`` of a range; what is not an answer at all raises as http.client does."""

    def __init__(self, done_bytes: int) -> None:
        super().__init__(done_bytes)
        self.done_bytes = done_bytes


class RangedGets:
    """Reads from many threads; each keeps its connection for as long as it lives."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connections = threading.local()

    def read_into(self, url: str, headers: dict[str, str], start: int, out: memoryview) -> Refusal | None:
        """Fill ``out`` with the bytes of ``url`` from ``start`` on; return None, or how the server refuses.

        Raises:
            RangeCutError: the answer ends too early; ``out`` is partly written.
            OSError, http.client.HTTPException: there is no answer.
        """
        parts = urlsplit(url)
        connection = self._connection(parts.scheme, parts.netloc)
        wanted = f"bytes={start}-{start + len(out) - 1}"
        try:
            connection.request("GET", f"{parts.path}?{parts.query}", headers=headers | {"Range": wanted})
            reply = connection.getresponse()
            if reply.status != HTTPStatus.PARTIAL_CONTENT or reply.length != len(out):
                body = reply.read(_MAX_REFUSAL_BYTES)
                connection.close()
                return Refusal(reply.status, body)
            _read_whole(reply, out)
            # Of a range that was read to its end, this is what frees the connection for the next.
            reply.read()
        except BaseException:
            connection.close()
            raise
        return None

    def _connection(self, scheme: str, address: str) -> http.client.HTTPConnection:
        kept: dict[str, http.client.HTTPConnection] = vars(self._connections)
        if address not in kept:
            kept[address] = (
                http.client.HTTPSConnection(address, timeout=self._timeout_s, context=ssl.create_default_context())
                if scheme == "https"
                else http.client.HTTPConnection(address, timeout=self._timeout_s)
            )
        return kept[address]


def _read_whole(reply: http.client.HTTPResponse, out: memoryview) -> None:
    done = 0
    while done < len(out):
        count = reply.readinto(out[done:])
        if not count:
            raise RangeCutError(done)
        done += count


def goes_through_proxy(url: str) -> bool:
    """Tell whether the environment wants a proxy between here and ``url``."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
