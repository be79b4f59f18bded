"""What `feed.py` serves: a replica that computes nothing and sends tokens in step, as a batch of streams has them."""

import asyncio
import os
import time
from collections.abc import AsyncIterator

from deployments.feed import Feeds
from deployments.types import ReplyTo
from deployments.wire import TokenDelta


class Steps:
    """The steps of an engine: all who wait for one go on in the same turn of the event loop."""

    def __init__(self, step_s: float) -> None:
        """``step_s`` of 0: as fast as it goes."""
        self._step_s = step_s
        self._next: asyncio.Future[None] | None = None

    async def next(self) -> None:
        """Wait for the next step's end."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            if self._step_s:
                now = loop.time()
                loop.call_at(now - now % self._step_s + self._step_s, self._end)
            else:
                loop.call_soon(self._end)
        await self._next

    def _end(self) -> None:
        if self._next is not None:
            self._next.set_result(None)
            self._next = None


class Source:
    """Streams tokens that are the time they were made at, in nanoseconds of the monotonic clock."""

    def __init__(self) -> None:
        self._feeds = Feeds()
        self._steps: dict[float, Steps] = {}

    async def pid(self) -> int:
        """Of the replica's process."""
        return os.getpid()

    async def each(self, tokens: int, step_s: float) -> AsyncIterator[list[int]]:
        """An item of the handle's stream for each token."""
        async for token in self._tokens(tokens, step_s):
            yield [token]

    async def gathered(self, tokens: int, step_s: float) -> AsyncIterator[list[int]]:
        """An item of the handle's stream for all that has accumulated since the last one."""
        gathered: list[int] = []
        news = asyncio.Event()

        async def gather() -> None:
            async for token in self._tokens(tokens, step_s):
                gathered.append(token)
                news.set()

        gathering = asyncio.create_task(gather())
        sent = 0
        while sent < tokens:
            await news.wait()
            news.clear()
            item = gathered[:]
            gathered.clear()
            sent += len(item)
            yield item
        await gathering

    async def feed(self, stream_id: str, reply_to: ReplyTo, tokens: int, step_s: float) -> int:
        """The replica's own way: one call a stream, its tokens on the feed."""
        feed = await self._feeds.open(reply_to)
        async for token in self._tokens(tokens, step_s):
            feed.send(TokenDelta(stream_id, [token]))
            await feed.drain()
        return tokens

    async def _tokens(self, tokens: int, step_s: float) -> AsyncIterator[int]:
        steps = self._steps.setdefault(step_s, Steps(step_s))
        for _ in range(tokens):
            await steps.next()
            yield time.monotonic_ns()
