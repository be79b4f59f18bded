"""The replica's end of the token feed: one connection to each gateway that has streams here.

Covers: connecting once per gateway, gathering what one turn of the event loop produced into one frame, back-pressure,
noticing that a gateway went away. Does not cover: the gateway's end (``app.streams``) and the format (``wire``).
"""

import asyncio
import socket
from collections.abc import Callable

from deployments.errors import FeedError
from deployments.types import ReplyTo
from deployments.wire import Hello, ReplicaNews, TokenDelta, encode_deltas, encode_hello, encode_news

CONNECT_TIMEOUT_S = 5.0
# A gateway whose machine answers nothing for so long is gone; who only reads slowly answers.
UNANSWERED_S = 10.0


class GatewayFeed:
    """An open connection to one gateway; not thread-safe, belongs to one event loop."""

    def __init__(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.address = address
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._pending: list[TokenDelta] = []
        self._on_lost: set[Callable[[], object]] = set()
        self.lost = False
        self._watcher = self._loop.create_task(self._watch(reader))

    def send(self, delta: TokenDelta) -> None:
        """Queue a delta; all deltas of this turn of the event loop leave in one frame. Dropped once ``lost``."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(delta)

    def tell(self, news: ReplicaNews) -> None:
        """Send news at once. Dropped once ``lost``."""
        if not self.lost and not self._writer.is_closing():
            self._writer.write(encode_news(news))

    async def drain(self) -> None:
        """Wait until the socket's buffer has room, so that a gateway which doesn't read slows its streams down.

        Raises:
            FeedError: the gateway went away.
        """
        if self.lost:
            raise FeedError(self.address, "the gateway went away")
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise FeedError(self.address, str(error)) from error

    def on_lost(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback`` once if the gateway goes away; returns what unregisters it."""
        self._on_lost.add(callback)
        return lambda: self._on_lost.discard(callback)

    def close(self) -> None:
        """Send what is pending and close; ``on_lost`` callbacks are not called."""
        self._on_lost.clear()
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        deltas, self._pending = self._pending, []
        if deltas and not self.lost and not self._writer.is_closing():
            self._writer.write(encode_deltas(deltas))

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        # The gateway never writes: any end of the read side means that it is gone.
        try:
            await reader.read()
        except ConnectionError:
            pass
        finally:
            self.lost = True
            self._writer.close()
            for callback in list(self._on_lost):
                callback()

    def __repr__(self) -> str:
        return f"<GatewayFeed {self.address} {'lost' if self.lost else 'open'}, {len(self._pending)} pending>"


class Feeds:
    """The feeds of one replica, by gateway address; opening one is single-flight."""

    def __init__(self) -> None:
        self._opening: dict[str, asyncio.Task[GatewayFeed]] = {}

    async def open(self, reply_to: ReplyTo) -> GatewayFeed:
        """Return the open feed to the gateway, connecting if there is none.

        Raises:
            FeedError: the gateway can't be reached within ``CONNECT_TIMEOUT_S`` seconds.
        """
        address = f"{reply_to['host']}:{reply_to['port']}"
        task = self._opening.get(address)
        if task is None or (task.done() and (task.cancelled() or task.exception() or task.result().lost)):
            task = asyncio.get_running_loop().create_task(_connect(address, reply_to))
            self._opening[address] = task
        return await asyncio.shield(task)

    def close(self) -> None:
        """Close every open feed."""
        for task in self._opening.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close()
            else:
                task.cancel()
        self._opening.clear()


async def _connect(address: str, reply_to: ReplyTo) -> GatewayFeed:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(reply_to["host"], reply_to["port"])
    except TimeoutError as error:
        raise FeedError(address, f"no answer within {CONNECT_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise FeedError(address, str(error)) from error
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNANSWERED_S))
    writer.write(encode_hello(Hello(reply_to["key"])))
    return GatewayFeed(address, reader, writer)
