"""Where streams could go. Real Ray, real vLLM; how they survive kills is `test_stress_slice`'s."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.support.conversations import Chunks, converse
from tests.support.service import CHAT_MODEL, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_TOKENS = 64


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=300) as client:
        yield client


async def test_with_one_replica_there_is_nowhere_to_move_to(http: httpx.AsyncClient) -> None:
    """The gateway knows which replica a stream runs on, and which others there are."""
    chunks = Chunks(1)
    order = {"model": CHAT_MODEL}
    assert (await http.post("/admin/migrate", json=order)).json() == {"moving": 0}, "nothing runs"
    stream = asyncio.ensure_future(converse(http, "greedy", max_tokens=MAX_TOKENS, on_chunk=chunks.counter(0)))
    async with asyncio.timeout(60):
        await chunks.at_least(2)
    refused = await http.post("/admin/migrate", json=order)
    assert refused.status_code == 400, refused.text
    assert "no other replica" in refused.json()["error"]["message"]
    assert (await stream).error is None
