"""Engines and replicas are killed under streams; clients get what they would have got. Real Ray, real vLLM, float32."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import psutil
import pytest
import pytest_asyncio

from tests.support.conversations import CONVERSATIONS, Chunks, Outcome, converse
from tests.support.service import CHAT_MODEL, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_TOKENS = 64
# Those that stream and end with their last token only.
LONG = [kind for kind, (_, body) in CONVERSATIONS.items() if body.get("stream") and body.get("ignore_eos")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=300) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(http: httpx.AsyncClient) -> dict[str, Outcome]:
    outcomes = await asyncio.gather(*(converse(http, kind, max_tokens=MAX_TOKENS) for kind in CONVERSATIONS))
    return dict(zip(CONVERSATIONS, outcomes, strict=True))


def engine_core(service: Service) -> psutil.Process:
    """The chat model's: that of the larger worker."""
    return max(service.processes("VLLM::Worker"), key=lambda process: process.memory_info().rss).parent()


VICTIMS: dict[str, Callable[[Service], psutil.Process]] = {
    "engine core": engine_core,
    "replica": lambda service: next(
        process for process in service.processes("Engines-default") if "Worker" not in process.name()
    ),
}


async def test_the_conversations_are_what_they_say(undisturbed: dict[str, Outcome]) -> None:
    assert all(outcome.error is None for outcome in undisturbed.values())
    assert set(undisturbed["n, seed, log probabilities"].written) == {0, 1}
    assert undisturbed["greedy"].usage is not None
    assert undisturbed["greedy"].usage["completion_tokens"] == MAX_TOKENS


@pytest.mark.parametrize("victim", VICTIMS)
async def test_what_is_killed_is_not_noticed(
    service: Service, http: httpx.AsyncClient, undisturbed: dict[str, Outcome], victim: str
) -> None:
    chunks = Chunks(len(LONG))
    counters = {kind: chunks.counter(index) for index, kind in enumerate(LONG)}
    asked = [
        asyncio.ensure_future(
            converse(http, kind, max_tokens=MAX_TOKENS, on_chunk=counters.get(kind, lambda _: None))
        )
        for kind in CONVERSATIONS
    ]  # fmt: skip
    async with asyncio.timeout(60):
        await chunks.at_least(10)
    ended = {kind for kind, call in zip(CONVERSATIONS, asked, strict=True) if call.done()}
    assert ended.isdisjoint(LONG), "there must be something to lose"
    VICTIMS[victim](service).kill()
    outcomes = await asyncio.gather(*asked)
    for kind, outcome in zip(CONVERSATIONS, outcomes, strict=True):
        assert outcome == undisturbed[kind], kind


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
