"""Held answers: a status while headers wait, comments and then the stream or an error event after."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message

from app import holding
from app.holding import answered
from deployments.errors import EngineUnavailableError


class Client:
    """A request whose client goes away when told to."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.request = Request({"type": "http"}, self._receive)

    async def _receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


async def progress() -> str:
    return "m is waking"


@pytest.fixture(autouse=True)
def quick_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "COMMENT_PERIOD_S", 0.001)


async def events_of(response: Response) -> list[str]:
    assert isinstance(response, StreamingResponse)
    return [str(event) async for event in response.body_iterator]


async def tokens() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    yield "data: [DONE]\n\n"


async def test_an_answer_in_time_is_the_answer() -> None:
    ready: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    ready.set_result(response := JSONResponse({}))
    assert await answered(ready, Client().request, header_wait_s=1, progress=progress) is response


async def test_a_refusal_in_time_keeps_its_status() -> None:
    work: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    work.set_exception(EngineUnavailableError("m", "too many"))
    with pytest.raises(EngineUnavailableError):
        await answered(work, Client().request, header_wait_s=1, progress=progress)


async def test_a_late_stream_begins_with_comments() -> None:
    work: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    response = await answered(work, Client().request, header_wait_s=0, progress=progress)
    assert isinstance(response, StreamingResponse)
    assert response.media_type == "text/event-stream"
    body = aiter(response.body_iterator)
    assert await anext(body) == ": m is waking\n\n"
    work.set_result(StreamingResponse(tokens()))
    rest = [event async for event in body]
    events = [event for event in rest if event != ": m is waking\n\n"]
    assert events == [":\n\ndata: 1\n\n", "data: [DONE]\n\n"]


async def test_comments_leave_a_stream_readable_to_a_client_that_strips_what_comes() -> None:
    # As vLLM's load generator does with each piece that it reads.
    from vllm.benchmarks.lib.endpoint_request_func import StreamedResponseHandler  # noqa: PLC0415  (slow to import)

    client, messages = StreamedResponseHandler(), []
    work: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    response = await answered(work, Client().request, header_wait_s=0, progress=progress)
    assert isinstance(response, StreamingResponse)
    pieces = 0
    async for piece in response.body_iterator:
        pieces += 1
        if pieces == 2:
            work.set_result(StreamingResponse(tokens()))
        messages += client.add_chunk(bytes(str(piece), "utf-8").strip())
    assert pieces >= 4
    assert [message for message in messages if not message.startswith(":")] == ["data: 1", "data: [DONE]"]


async def test_a_late_stream_of_a_model_that_is_awake_has_no_comments() -> None:
    work: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    looks = 0

    async def nothing() -> str:
        nonlocal looks
        looks += 1
        if looks == 3:
            work.set_result(StreamingResponse(tokens()))
        return ""

    response = await answered(work, Client().request, header_wait_s=0, progress=nothing)
    assert await events_of(response) == ["data: 1\n\n", "data: [DONE]\n\n"]


async def test_a_late_failure_is_an_error_event() -> None:
    work: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    response = await answered(work, Client().request, header_wait_s=0, progress=progress)
    work.set_exception(EngineUnavailableError("m", "its start failed"))
    last = (await events_of(response))[-1]
    assert '"code": 503' in last
    assert "its start failed" in last
    assert last.endswith("data: [DONE]\n\n")


async def test_without_a_stream_headers_wait_as_long_as_it_takes() -> None:
    work: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(answered(work, Client().request, header_wait_s=None, progress=progress))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    work.set_result(response := JSONResponse({}))
    assert await waiting is response


@pytest.mark.parametrize("held", [False, True])
async def test_a_client_that_leaves_ends_the_work(*, held: bool) -> None:
    work: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    client = Client()
    if held:
        response = await answered(work, client.request, header_wait_s=0, progress=progress)
        assert isinstance(response, StreamingResponse)
        body = aiter(response.body_iterator)
        await anext(body)
        await body.aclose()  # type: ignore[attr-defined]
    else:
        client.leaves.set()
        response = await answered(work, client.request, header_wait_s=5, progress=progress)
        assert response.status_code == 499
    assert work.cancelled()
