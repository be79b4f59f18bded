"""Ranged GETs past any HTTP client: a connection for each thread, and nothing between its socket and the caller.

HTTP clients read into memory of their own and copy from there, twice in urllib3; where the network is fast that is as
much work as the transfer itself. Covers: the connections and the range. Does not cover: what a refusal means, and
when to ask again.
"""

import http.client
import ssl
import threading
import urllib.request
from collections.abc import Iterator
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
    """The answer ended after ``done_bytes`` of a range."""

    def __init__(self, done_bytes: int) -> None:
        super().__init__(done_bytes)
        self.done_bytes = done_bytes


class Answer:
    """A range that is on its way; read it whole or not at all, from the thread that asked."""

    def __init__(self, connection: http.client.HTTPConnection, reply: http.client.HTTPResponse, length: int) -> None:
        self._connection = connection
        self._reply = reply
        self._length = length

    def pieces(self, buffer: memoryview) -> Iterator[memoryview]:
        """Yield the range in pieces that fill ``buffer``, the last one in part.

        Raises:
            RangeCutError: it ends too early.
            OSError, http.client.HTTPException: the connection fails.
        """
        done = 0
        try:
            while done < self._length:
                piece = buffer[: self._length - done]
                filled = 0
                while filled < len(piece):
                    count = self._reply.readinto(piece[filled:])
                    if not count:
                        raise RangeCutError(done + filled)
                    filled += count
                done += filled
                yield piece
            # Of a range that was read to its end, this is what frees the connection for the next.
            self._reply.read()
        finally:
            if done < self._length or not self._reply.isclosed():
                self._connection.close()


class RangedGets:
    """Reads from many threads; each keeps its connection for as long as it lives."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connections = threading.local()

    def ask(self, url: str, headers: dict[str, str], start: int, end: int) -> Answer | Refusal:
        """Ask for the bytes of ``url`` from ``start`` to before ``end``.

        Raises:
            OSError, http.client.HTTPException: there is no answer.
        """
        parts = urlsplit(url)
        connection = self._connection(parts.scheme, parts.netloc)
        wanted = f"bytes={start}-{end - 1}"
        try:
            connection.request("GET", f"{parts.path}?{parts.query}", headers=headers | {"Range": wanted})
            reply = connection.getresponse()
            if reply.status == HTTPStatus.PARTIAL_CONTENT and reply.length == end - start:
                return Answer(connection, reply, end - start)
            refusal = Refusal(reply.status, reply.read(_MAX_REFUSAL_BYTES))
        except BaseException:
            connection.close()
            raise
        connection.close()
        return refusal

    def _connection(self, scheme: str, address: str) -> http.client.HTTPConnection:
        kept: dict[str, http.client.HTTPConnection] = vars(self._connections)
        if address not in kept:
            kept[address] = (
                http.client.HTTPSConnection(address, timeout=self._timeout_s, context=ssl.create_default_context())
                if scheme == "https"
                else http.client.HTTPConnection(address, timeout=self._timeout_s)
            )
        return kept[address]


def goes_through_proxy(url: str) -> bool:
    """Tell whether the environment wants a proxy between here and ``url``."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
