"""The gateway's end of the token feed: a socket that replicas connect to, and the streams that wait for tokens.

Covers: listening, the key, handing each frame's deltas to their streams, noticing that a replica has fallen silent (a
machine whose power goes, or that nothing reaches, ends no connection). Does not cover: what a stream does with them
(``engine_client``), the replica's end (``deployments.feed``), the format (``deployments.wire``).
"""

import asyncio
import hmac
import logging
import secrets
from dataclasses import dataclass
from typing import Protocol

import msgspec

from deployments.types import ReplyTo
from deployments.wire import HEARTBEAT_S, ReplicaNews, TokenDelta, decode_frame, decode_hello, read_frame

logger = logging.getLogger(__name__)

# A replica that misses so many in a row is taken for gone. What it still does then is done twice, and told once.
MISSED_HEARTBEATS = 10


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

    def lose(self, last: ReplicaNews, *, silently: bool) -> None:
        """Take note that the connection has ended on which these were the last news.

        ``silently``: the replica has not ended it; it has said nothing for so long that the gateway did.
        """
        ...


class _Nobody:
    def hear(self, news: ReplicaNews) -> None:
        """Take news."""

    def lose(self, last: ReplicaNews, *, silently: bool) -> None:
        """Take note of an end."""


@dataclass(eq=False)
class _Connection:
    """A replica's; ``told`` are its last news, from which on it is to be heard of at each heartbeat."""

    writer: asyncio.StreamWriter
    told: ReplicaNews | None = None
    missed: int = 0
    is_silent: bool = False


class TokenStreams:
    """Listens for replicas; one event loop."""

    def __init__(self, audience: NewsAudience | None = None) -> None:
        """``audience`` gets what replicas tell of themselves."""
        self._audience = audience or _Nobody()
        self._key = secrets.token_hex(16)
        self._sinks: dict[str, DeltaSink] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._listening_for_silence: asyncio.Task[None] | None = None
        self.reply_to: ReplyTo = {"host": "", "port": 0, "key": self._key}

    async def listen(self, host: str) -> None:
        """Listen on ``host`` at a free port; ``reply_to`` then tells replicas where."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.reply_to = {"host": host, "port": port, "key": self._key}
        self._listening_for_silence = asyncio.get_running_loop().create_task(self._listen_for_silence())

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
        if self._listening_for_silence is not None:
            self._listening_for_silence.cancel()
        for connection in self._connections:
            connection.writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            if await self._is_replica(reader):
                while (body := await read_frame(reader)) is not None:
                    connection.missed = 0
                    frame = decode_frame(body)
                    if isinstance(frame, ReplicaNews):
                        connection.told = frame
                        self._audience.hear(frame)
                    else:
                        self._dispatch(frame)
        except (ValueError, msgspec.MsgspecError):
            logger.exception("a token feed sent something that is no frame; closing it")
        finally:
            self._connections.discard(connection)
            writer.close()
            if connection.told is not None:
                self._audience.lose(connection.told, silently=connection.is_silent)

    async def _listen_for_silence(self) -> None:
        # Counted, not timed: who was held up himself, with the whole machine perhaps, has missed one heartbeat.
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for connection in self._connections:
                connection.missed += 1
                if connection.told is not None and connection.missed > MISSED_HEARTBEATS:
                    logger.warning(
                        "replica %s has said nothing for %d heartbeats", connection.told.replica_id, MISSED_HEARTBEATS
                    )
                    connection.is_silent = True
                    # What it may still have to be sent nobody will take.
                    connection.writer.transport.abort()

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
