"""A gateway's end of the feed for tests: collects deltas, and lets a test wait for what it expects."""

import asyncio

from app.streams import TokenStreams
from deployments.types import GenerateRequest
from deployments.wire import TokenDelta


class Collector:
    """A ``DeltaSink`` that keeps everything, frame by frame."""

    def __init__(self) -> None:
        self.frames: list[list[TokenDelta]] = []
        self._changed = asyncio.Event()

    def on_deltas(self, deltas: list[TokenDelta]) -> None:
        self.frames.append(deltas)
        self._changed.set()

    def tokens(self, stream_id: str) -> list[int]:
        return [token for frame in self.frames for d in frame if d.stream_id == stream_id for token in d.token_ids]

    def finished(self) -> set[str]:
        return {delta.stream_id for frame in self.frames for delta in frame if delta.finish_reason is not None}

    async def until(self, holds) -> None:  # noqa: ANN001 - a predicate without arguments
        async with asyncio.timeout(10):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


def generate_request(
    streams: TokenStreams, stream_id: str, *, max_tokens: int = 4, model_id: str = "fake", **sampling: object
) -> GenerateRequest:
    return {
        "stream_id": stream_id,
        "model_id": model_id,
        "prompt_token_ids": [7, 8, 9],
        "sampling": {"max_tokens": max_tokens, "temperature": 0.0} | sampling,
        "reply_to": streams.reply_to,
    }
