"""Traces of requests at a whole gateway, in a real collector: what is in them, and that nobody feels the collector."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deployments.tracing import NO_SPAN, TraceConfig, Tracing
from tests.support.collector import Collector, Spanned, collecting
from tests.support.gateways import InProcess, PacedEngine, embedding_model, gateway_of, model
from tests.support.tenants import KeysFile
from tests.support.waiting import until_it_returns

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL, VECTORS, PATH = "traced-model", "vectors", "/v1/completions"
WORDS = "zebra crossing"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    directory = tmp_path_factory.mktemp("gateway")
    keys = KeysFile(directory / "keys.yaml", acme={"models": "*"}, root={"admin": True})
    traces = TraceConfig(collector.endpoint)
    specs = model(MODEL), embedding_model(VECTORS)
    async with gateway_of(directory, *specs, keys_file=keys.path, traces=traces) as running:
        running.client.headers["Authorization"] = f"Bearer {keys.keys['acme']}"
        running.key = keys.keys["acme"]  # type: ignore[attr-defined]
        for spec in specs:
            (await running.client.post("/tokenize", json={"model": spec.id, "prompt": "x"})).raise_for_status()
        yield running


@dataclass
class Trace:
    """One that a client begins, and what came of it."""

    service: InProcess
    collector: Collector
    trace_id: str
    span_id: str

    @property
    def header(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"

    async def post(self, path: str = PATH, **body: Any) -> int:
        body = {"model": MODEL, "prompt": f"one {WORDS}", "max_tokens": 3} | body
        told = {"traceparent": self.header, "x-request-id": self.trace_id}
        return (await self.service.client.post(path, headers=told, json=body)).status_code

    async def spans(self, *, of: str = "completions") -> Spanned:
        """Return the request's span once it is there."""
        for tracing in (self.service.gateway._tracing, self.service.pool.target._tracing):
            await asyncio.to_thread(tracing.flush)
        (root,) = (span for span in self.collector.of(self.trace_id) if span.parent_id == self.span_id)
        assert root.name == of
        return root

    def within(self, parent: Spanned) -> dict[str, Spanned]:
        found = self.collector.children(parent)
        assert all(parent.begin_s - 0.01 <= span.begin_s <= span.end_s <= parent.end_s + 0.01 for span in found)
        return {span.name: span for span in found}


@pytest.fixture
def trace(service: InProcess, collector: Collector) -> Trace:
    return Trace(service, collector, secrets.token_hex(16), secrets.token_hex(8))


async def test_a_request_is_followed_from_the_client_to_the_engine(trace: Trace) -> None:
    assert await trace.post() == 200
    root = await trace.spans()
    assert root.process == "flashserve-gateway"
    told = root.attributes
    assert (told["flashserve.request_id"], told["flashserve.tenant"]) == (trace.trace_id, "acme")
    assert (told["gen_ai.request.model"], told["gen_ai.operation.name"]) == (MODEL, "completions")
    assert (told["gen_ai.usage.output_tokens"], told["http.response.status_code"]) == (3, 200)
    assert (told["flashserve.outcome"], root.failure) == ("ok", None)
    assert trace.within(root).keys() == {"queue", "attempt"}
    attempt = trace.within(root)["attempt"]
    assert attempt.attributes["flashserve.attempt"] == 1
    (generate,) = trace.within(attempt).values()
    assert (generate.name, generate.process) == ("generate", "flashserve-engines")
    assert trace.within(generate).keys() == {"queue", "prefill", "decode"}
    assert trace.within(generate)["decode"].attributes["flashserve.tokens"] == 3


async def test_what_was_asked_and_answered_is_in_no_trace(trace: Trace) -> None:
    assert await trace.post(stop=["ebra"], user=f"user {WORDS}") == 200
    assert await trace.post(max_tokens=-3) == 400
    await trace.service.client.post(PATH, headers={"traceparent": trace.header}, content=WORDS)
    await asyncio.to_thread(trace.service.gateway._tracing.flush)
    assert len([span for span in trace.collector.of(trace.trace_id) if span.name == "completions"]) == 3
    for word in WORDS.split():
        assert not any(word.encode() in body for body in trace.collector.bodies)


async def test_a_wake_that_a_request_waits_for_is_part_of_it(trace: Trace) -> None:
    residents = trace.service.pool.target._residents
    await residents.sleep(MODEL)
    assert await trace.post() == 200
    (generate,) = trace.within(trace.within(await trace.spans())["attempt"]).values()
    hold = trace.within(generate)["hold"]
    assert hold.attributes["flashserve.engine_state"] == "asleep"
    (wake,) = trace.within(hold).values()
    assert (wake.name, wake.attributes["flashserve.tier"]) == ("wake", "nowhere")
    assert hold.end_s <= trace.within(generate)["prefill"].begin_s + 0.01


async def test_a_stream_that_outlives_its_engine_shows_its_attempts(trace: Trace) -> None:
    residents = trace.service.pool.target._residents
    PacedEngine.may_go_on.clear()
    asked = asyncio.ensure_future(trace.post(max_tokens=5))
    try:

        async def generating() -> bool:
            return bool(residents._residents[MODEL].life._engine.running)

        await until_it_returns(generating, True)
        residents._residents[MODEL].life._engine.die()
    finally:
        PacedEngine.may_go_on.set()
    assert await asked == 200
    root = await trace.spans()
    attempts = [span for span in trace.collector.children(root) if span.name == "attempt"]
    assert [span.attributes["flashserve.attempt"] for span in attempts] == [1, 2]
    assert [span.failure for span in attempts] == ["engine died", None]
    (asked_again,) = (ask for ask in trace.service.asked(MODEL) if ask.get("stream_id", "").endswith("~2"))
    delivered = len(asked_again.get("delivered_token_ids", []))
    assert attempts[1].attributes["flashserve.delivered_tokens"] == delivered
    told = [trace.within(attempt)["generate"] for attempt in attempts]
    assert [span.failure for span in told] == ["EngineDiedError", None]
    # Whether it had to wait for the next engine depends on when it came back.
    assert "decode" in trace.within(told[1])
    assert root.failure is None
    assert root.attributes["gen_ai.usage.output_tokens"] == 5


async def test_an_embedding_and_a_handle_call_are_followed_too(trace: Trace) -> None:
    assert await trace.post("/v1/embeddings", model=VECTORS, input="one") == 200
    root = await trace.spans(of="embeddings")
    (embed,) = trace.within(trace.within(root)["attempt"]).values()
    assert (embed.name, trace.within(embed).keys()) == ("embed", {"prefill"})
    by_handle = Trace(trace.service, trace.collector, secrets.token_hex(16), secrets.token_hex(8))
    body = {"model": MODEL, "prompt": "one", "max_tokens": 2}
    key = trace.service.key  # type: ignore[attr-defined]
    await trace.service.gateway.call("completions", body, key, by_handle.header)
    assert "attempt" in by_handle.within(await by_handle.spans())
    async for _ in trace.service.gateway.stream("completions", body, key, by_handle.header):
        pass
    await asyncio.to_thread(trace.service.gateway._tracing.flush)
    assert len([span for span in trace.collector.of(by_handle.trace_id) if span.name == "completions"]) == 2


async def test_what_is_turned_away_says_why(trace: Trace) -> None:
    told = {"traceparent": trace.header, "Authorization": "Bearer wrong"}
    assert (await trace.service.client.post(PATH, headers=told, json={})).status_code == 401
    root = await trace.spans()
    assert (root.failure, root.attributes["flashserve.outcome"]) == ("key", "refused")


async def test_who_decides_against_a_trace_is_obeyed(trace: Trace) -> None:
    asked = len(trace.service.pool.asked)
    told = {"traceparent": trace.header[:-1] + "0"}
    body = {"model": MODEL, "prompt": "one", "max_tokens": 2}
    assert (await trace.service.client.post(PATH, headers=told, json=body)).status_code == 200
    assert all("traceparent" not in ask for ask in trace.service.pool.asked[asked:])
    await asyncio.to_thread(trace.service.gateway._tracing.flush)
    assert trace.collector.of(trace.trace_id) == []


@pytest.mark.parametrize("header", ["", "00-0-0-01", "x" * 5000, f"00-{'0' * 32}-{'0' * 16}-01"])
async def test_a_header_that_is_none_begins_a_trace(trace: Trace, header: str) -> None:
    told = {"traceparent": header, "x-request-id": trace.trace_id}
    body = {"model": MODEL, "prompt": "one", "max_tokens": 2}
    assert (await trace.service.client.post(PATH, headers=told, json=body)).status_code == 200
    await asyncio.to_thread(trace.service.gateway._tracing.flush)
    (root,) = (span for span in trace.collector.spans if span.attributes.get("flashserve.request_id") == trace.trace_id)
    assert root.parent_id == ""


async def test_nobody_feels_a_collector_that_fails(trace: Trace) -> None:
    trace.collector.status = 500
    try:
        assert await trace.post() == 200
        begin_s = asyncio.get_running_loop().time()
        tracing = Tracing(TraceConfig(trace.collector.endpoint), "other")
        tracing.begin("lost").end()
        await tracing.close()
        assert asyncio.get_running_loop().time() - begin_s < 4
    finally:
        trace.collector.status = 200


async def test_without_traces_nothing_is_done_for_them(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, model(MODEL), keys_file=None) as running:
        body = {"model": MODEL, "prompt": "one", "max_tokens": 2}
        told = {"traceparent": f"00-{'1' * 32}-{'1' * 16}-01"}
        assert (await running.client.post(PATH, headers=told, json=body)).status_code == 200
        (ask,) = (ask for ask in running.asked(MODEL) if "sampling" in ask)
        assert "traceparent" not in ask
    assert NO_SPAN.child("any") is NO_SPAN.lasted("any", 0, 1) is NO_SPAN
    assert not NO_SPAN


async def test_a_share_of_requests_is_traced(collector: Collector) -> None:
    tracing = Tracing(TraceConfig(collector.endpoint, sample=0.0), "other")
    assert not tracing.begin("one")
    assert tracing.begin("one").child("two").traceparent is None
    assert tracing.begin("one", {"traceparent": f"00-{'1' * 32}-{'1' * 16}-01"}), "whoever asks has decided"
    assert tracing.go_on("one", None) is NO_SPAN
    await tracing.close()
