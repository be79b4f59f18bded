"""Waiting for what another process does in its own time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

_PERIOD_S = 0.02


def until(holds: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Return what ``holds`` returns once that is true."""
    deadline_s = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline_s, f"did not hold within {within_s:g} s"
        time.sleep(_PERIOD_S)
    return found


async def until_it_returns(asked: Callable[[], Awaitable[Any]], value: Any) -> None:
    async with asyncio.timeout(10):
        while await asked() != value:  # noqa: ASYNC110 - what is waited for announces nothing
            await asyncio.sleep(0.01)
