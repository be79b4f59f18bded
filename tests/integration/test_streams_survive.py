"""The streams that are disturbed in `test_stress_slice`, undisturbed, and where they could go. Real Ray, real vLLM."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.support.conversations import CONVERSATIONS, Chunks, converse
from tests.support.service import CHAT_MODEL, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_TOKENS = 64


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=300) as client:
        yield client


async def test_the_conversations_are_what_they_say(http: httpx.AsyncClient) -> None:
    outcomes = await asyncio.gather(*(converse(http, kind, max_tokens=MAX_TOKENS) for kind in CONVERSATIONS))
    undisturbed = dict(zip(CONVERSATIONS, outcomes, strict=True))
    assert all(outcome.error is None for outcome in outcomes)
    assert set(undisturbed["n, seed, log probabilities"].written) == {0, 1}
    assert undisturbed["greedy"].usage is not None
    assert undisturbed["greedy"].usage["completion_tokens"] == MAX_TOKENS


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
