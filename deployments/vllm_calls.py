"""Calls to a vLLM engine that are no requests: to its workers, of its adapters and caches.

vLLM (0.29, ``AsyncMPClient``) tells requests of their engine's death, and leaves whoever waits for the answer to such a
call waiting for good. So these look for it themselves.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

_Answer = TypeVar("_Answer")

# How late the death of an engine is noticed that owes an answer.
LOOK_PERIOD_S = 0.25


async def answered(llm: AsyncLLM, call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Return what ``call``, one of ``llm``'s, answers.

    Raises:
        EngineDeadError: the engine ended before it did.
        Exception: whatever the call raises.
    """
    asking = asyncio.ensure_future(call)
    try:
        while not asking.done():
            await asyncio.wait([asking], timeout=LOOK_PERIOD_S)
            if llm.errored and not asking.done():
                raise EngineDeadError
        return asking.result()
    finally:
        asking.cancel()
