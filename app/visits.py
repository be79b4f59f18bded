"""Requests to the operations of the API, noted from their first byte to their last: counted, and a line of log each.

Covers: when a request begins and ends, over HTTP and by handle, and the span that lasts from the one to the other. Does
not cover: what is noted meanwhile (``request_record``, by whoever knows), metrics' names (``request_metrics``).
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.request_metrics import RequestMetrics
from app.request_record import RequestRecord, begin_record, noted_id
from deployments.event_log import event_line
from deployments.tracing import Tracing

logger = logging.getLogger(__name__)

# Serve's proxy gives one to every request that has none, and sends it back with the answer, whatever that is.
REQUEST_ID_HEADER = "x-request-id"


class Visits:
    """One gateway's; one event loop."""

    def __init__(self, metrics: RequestMetrics | None = None, tracing: Tracing | None = None) -> None:
        self._metrics = metrics
        self._tracing = tracing

    def begin(
        self, operation: str, request_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> RequestRecord:
        """Return the notes of a request that has come, which this task works for from now on.

        ``headers`` may hold W3C's ``traceparent``.
        """
        record = RequestRecord(noted_id(request_id), operation)
        if self._tracing is not None:
            record.span = self._tracing.begin(
                operation,
                headers,
                record.began_s,
                gen_ai__operation__name=operation,
                flashserve__request_id=record.request_id,
            )
        begin_record(record)
        return record

    def end(self, record: RequestRecord) -> None:
        """Count a request that has ended, and say so."""
        now_s = time.monotonic()
        if self._metrics is not None:
            self._metrics.finished(record, now_s)
        if record.span:
            _end_span(record, now_s)
        first_token_s = None if record.first_token_s is None else record.first_token_s - record.began_s
        logger.info(
            event_line(
                "request.ended",
                request_id=record.request_id,
                operation=record.operation,
                model=record.model or None,
                tenant=record.tenant or None,
                outcome=record.outcome(),
                status=record.status,
                reason=record.refusal or record.failure,
                took_s=now_s - record.began_s,
                first_token_s=first_token_s,
                prompt_tokens=record.prompt_tokens,
                completion_tokens=record.completion_tokens,
            )
        )

    def __repr__(self) -> str:
        return f"<Visits {'counted' if self._metrics is not None else 'not counted'}>"


def _end_span(record: RequestRecord, now_s: float) -> None:
    outcome = record.outcome()
    record.span.note(
        gen_ai__request__model=record.model or None,
        gen_ai__usage__input_tokens=record.prompt_tokens,
        gen_ai__usage__output_tokens=record.completion_tokens,
        http__response__status_code=record.status or None,
        flashserve__tenant=record.tenant or None,
        flashserve__outcome=outcome,
    )
    # Who is told of a mistake of theirs, or leaves, has not met a failure of the service.
    record.span.end(record.refusal or record.failure or outcome if outcome in {"failed", "refused"} else None, now_s)


class NotedRequests:
    """ASGI middleware, the outermost: what is refused at the door is noted too."""

    def __init__(self, app: ASGIApp, visits: Visits, paths: Mapping[Any, str]) -> None:
        """``paths`` are those of the operations, by their names."""
        self._app = app
        self._visits = visits
        self._operations = {path: str(operation) for operation, path in paths.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        operation = self._operations.get(path)
        if operation is None:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = self._visits.begin(operation, headers.get(REQUEST_ID_HEADER), headers)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._visits.end(record)


def status_of_answer(answer: Any) -> int:
    """Return the HTTP status that a handle's answer, or one chunk of it, would have had."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return int(error["code"]) if isinstance(error, dict) else 200
