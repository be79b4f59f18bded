"""Answers that are a while in coming, because a model wakes: refusals keep their status, streams are kept alive.

Headers wait a short time, in which a refusal can still be an HTTP status. After that a client that asked for a stream
gets it at once, with comments that say what it waits for; server-sent events' comments never reach the content. A
failure is then an error event. A client that goes away ends the work in every case.

There are clients that strip what the network brings, piece by piece, vLLM's load generator for one: a comment that came
alone loses the empty line at its end, and what comes next would be taken for more of it. So what follows comments
brings the end of a comment along.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from app.request_record import current_record
from app.responses import error_answer

COMMENT_PERIOD_S = 1.0
_END_OF_COMMENT = ":\n\n"
_CLIENT_CLOSED_REQUEST = 499

Progress = Callable[[], Awaitable[str]]


async def answered(
    work: asyncio.Future[Response], raw_request: Request, *, header_wait_s: float | None, progress: Progress
) -> Response:
    """Return the answer, or after ``header_wait_s`` a stream that will bring it; with None there is no such stream.

    Args:
        work: makes the answer; cancelled when the client goes away.
        raw_request: of which nothing more is read than that the client has gone.
        header_wait_s: seconds that headers wait.
        progress: returns a line about what is waited for, or none.

    Raises:
        What ``work`` raises within that time.
    """
    gone = asyncio.ensure_future(_disconnected(raw_request.receive))
    handed_over = False
    try:
        await asyncio.wait([work, gone], timeout=header_wait_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        handed_over = True
        return StreamingResponse(_held(work, progress), media_type="text/event-stream")
    finally:
        gone.cancel()
        if not handed_over:
            work.cancel()


async def _held(work: asyncio.Future[Response], progress: Progress) -> AsyncGenerator[str, None]:
    end_of_comment = ""
    try:
        while not work.done():
            if line := await progress():
                end_of_comment = _END_OF_COMMENT
                yield f": {line}\n\n"
            await asyncio.wait([work], timeout=COMMENT_PERIOD_S)
        async with contextlib.aclosing(_events(work.result())) as events:
            async for event in events:
                yield end_of_comment + event
                end_of_comment = ""
    except Exception as error:  # noqa: BLE001 - headers are gone: every error becomes an event
        record = current_record()
        record.failure = record.failure or type(error).__name__
        yield end_of_comment + _event(json.dumps(error_answer(error)))
    finally:
        work.cancel()


async def _events(response: Response) -> AsyncGenerator[str, None]:
    if isinstance(response, StreamingResponse):
        async with contextlib.aclosing(response.body_iterator) as events:
            async for event in events:
                yield event if isinstance(event, str) else bytes(event).decode()
    else:
        yield _event(bytes(response.body).decode())


def _event(data: str) -> str:
    return f"data: {data}\n\ndata: [DONE]\n\n"


async def _disconnected(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
