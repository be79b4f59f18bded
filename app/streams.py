"""The gateway's end of the token feed: a socket that replicas connect to, and the streams that wait for tokens.

Covers: listening, the key, handing each frame's deltas to their streams. Does not cover: what a stream does with them
(``engine_client``), the replica's end (``deployments.feed``), the format (``deployments.wire``).
"""

import asyncio
import hmac
import logging
import secrets
from typing import Protocol

import msgspec

from deployments.types import ReplyTo
from deployments.wire import ReplicaNews, TokenDelta, decode_frame, decode_hello, read_frame

logger = logging.getLogger(__name__)


class DeltaSink(Protocol):
    """Takes the deltas that one frame holds for its streams, all at once."""

    def on_deltas(self, deltas: list[TokenDelta]) -> None:
        """Take them; must neither block nor raise."""
        ...


class NewsAudience(Protocol):
    """Takes what replicas tell of themselves; must neither block nor raise."""

    def hear(self, news: ReplicaNews) -> None:
        """Take news."""
        ...

    def lose(self, last: ReplicaNews) -> None:
        """Take note that the connection has ended on which these were the last news."""
        ...


class _Nobody:
    def hear(self, news: ReplicaNews) -> None:
        """Take news."""

    def lose(self, last: ReplicaNews) -> None:
        """Take note of an end."""


class TokenStreams:
    """Listens for replicas; one event loop."""

    def __init__(self, audience: NewsAudience | None = None) -> None:
        """``audience`` gets what replicas tell of themselves."""
        self._audience = audience or _Nobody()
        self._key = secrets.token_hex(16)
        self._sinks: dict[str, DeltaSink] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.reply_to: ReplyTo = {"host": "", "port": 0, "key": self._key}

    async def listen(self, host: str) -> None:
        """Listen on ``host`` at a free port; ``reply_to`` then tells replicas where."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.reply_to = {"host": host, "port": port, "key": self._key}

    def expect(self, stream_id: str, sink: DeltaSink) -> None:
        """Hand the stream's deltas to ``sink`` from now on."""
        self._sinks[stream_id] = sink

    def forget(self, stream_id: str) -> None:
        """Drop whatever still comes for the stream."""
        self._sinks.pop(stream_id, None)

    def close(self) -> None:
        """Stop listening and close the connections, which ends what replicas generate for this gateway."""
        if self._server is not None:
            self._server.close()
        for writer in self._connections:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        told: ReplicaNews | None = None
        try:
            if await self._is_replica(reader):
                while (body := await read_frame(reader)) is not None:
                    frame = decode_frame(body)
                    if isinstance(frame, ReplicaNews):
                        told = frame
                        self._audience.hear(frame)
                    else:
                        self._dispatch(frame)
        except (ValueError, msgspec.MsgspecError):
            logger.exception("a token feed sent something that is no frame; closing it")
        finally:
            self._connections.discard(writer)
            writer.close()
            if told is not None:
                self._audience.lose(told)

    async def _is_replica(self, reader: asyncio.StreamReader) -> bool:
        body = await read_frame(reader)
        return body is not None and hmac.compare_digest(decode_hello(body).key, self._key)

    def _dispatch(self, deltas: list[TokenDelta]) -> None:
        by_sink: dict[DeltaSink, list[TokenDelta]] = {}
        for delta in deltas:
            sink = self._sinks.get(delta.stream_id)
            if sink is not None:
                by_sink.setdefault(sink, []).append(delta)
        for sink, own in by_sink.items():
            sink.on_deltas(own)

    def __repr__(self) -> str:
        return f"<TokenStreams {len(self._sinks)} streams, {len(self._connections)} replicas>"
