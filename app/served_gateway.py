"""The gateway as Serve deploys it: its door, and behind it HTTP and the handle calls.

Covers: what handles may call, each with a key where keys are configured; the life of both. Does not cover: answering
(``gateway``). Administration is HTTP's alone.

What imports vLLM is imported where a gateway runs: whoever only names the class is spared ten seconds.
"""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp

from app.config import AppConfig, trace_config
from app.door import Door
from app.key_ring import KeyRing
from app.refusals import refusal_of
from app.request_metrics import RequestMetrics
from app.tenant_metrics import TenantMetrics
from app.visits import NotedRequests, Visits, status_of_answer
from deployments.event_log import log_with
from deployments.imports import without_collecting
from deployments.tracing import Tracing
from storage.store import StoreConfig

if TYPE_CHECKING:
    from app.openai_layer import Operation

logger = logging.getLogger(__name__)


class GuardedGateway:
    """Plain class; ``ingress`` is what Serve deploys. One event loop."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a gateway is made of
        self,
        config: AppConfig,
        catalogue: Any,
        pools: Mapping[str, Any],
        nodes: Any,
        storage: StoreConfig,
        forecaster: Any = None,
        keys_file: Path | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """``catalogue``, ``pools`` (by name), ``nodes`` and ``forecaster`` (None without one) are Serve handles.

        Without ``keys_file`` there is no need of keys, and without ``tracing`` there are no traces.
        """
        with without_collecting():
            from app.gateway import Gateway  # noqa: PLC0415 - imports vLLM

        ring = KeyRing(keys_file) if keys_file is not None else None
        metrics = TenantMetrics() if ring is not None else None
        self._door = Door(ring, gateways=config.gateway.replicas, metrics=metrics)
        self._gateway = Gateway(config, catalogue, pools, nodes, storage, self._door, forecaster)
        self._allow_anonymous = config.security.allow_anonymous
        self._max_body_bytes = config.gateway.max_body_bytes
        self._tracing = tracing
        self._visits = Visits(RequestMetrics(), tracing)
        self._door.run()
        if ring is None and self._allow_anonymous:
            logger.warning("there are no API keys: anybody who reaches this service may use and administer it")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook: the HTTP application of this replica."""
        from app.guard import Guard  # noqa: PLC0415 - imports vLLM
        from app.routes import PATHS, build_http_app  # noqa: PLC0415 - imports vLLM

        app = build_http_app(self._gateway, self._max_body_bytes)
        guarded = Guard(app, self._door, PATHS.values(), allow_anonymous=self._allow_anonymous)
        return NotedRequests(guarded, self._visits, PATHS)

    async def call(
        self, operation: "Operation", body: dict[str, Any], api_key: str | None = None, traceparent: str | None = None
    ) -> dict[str, Any]:
        """Answer a request given as OpenAI's JSON body: builtin types in and out, an error as OpenAI's error object.

        ``traceparent`` is as the header of that name.
        """
        record = self._visits.begin(operation, headers=_trace_headers(traceparent))
        try:
            caller = await self._door.identify(api_key)
            record.tenant = caller.name
            with self._door.visit(caller):
                answer = await self._gateway.call(operation, body, caller)
        except Exception as error:  # noqa: BLE001 - every error becomes an answer, as over HTTP
            record.refusal = refusal_of(error)
            answer = _error_answer(error)
        except BaseException:
            # Cancelled too: its caller has left, and that is noted as well.
            self._visits.end(record)
            raise
        record.status = status_of_answer(answer)
        self._visits.end(record)
        return answer

    async def stream(
        self, operation: "Operation", body: dict[str, Any], api_key: str | None = None, traceparent: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of a streamed answer as builtin types; an error is one chunk with OpenAI's error object."""
        record = self._visits.begin(operation, headers=_trace_headers(traceparent))
        try:
            caller = await self._door.identify(api_key)
            record.tenant = caller.name
            with self._door.visit(caller):
                async with aclosing(self._gateway.stream(operation, body, caller)) as chunks:
                    async for chunk in chunks:
                        record.status = max(record.status, status_of_answer(chunk))
                        yield chunk
        except Exception as error:  # noqa: BLE001 - as in ``call``
            record.refusal, answer = refusal_of(error), _error_answer(error)
            record.status = status_of_answer(answer)
            yield answer
        finally:
            self._visits.end(record)

    async def models(self, api_key: str | None = None) -> list[dict[str, Any]] | dict[str, Any]:
        """Return a card for every model and adapter that the key reaches; an error as OpenAI's error object."""
        try:
            return await self._gateway.models(await self._door.identify(api_key))
        except Exception as error:  # noqa: BLE001 - as in ``call``
            return _error_answer(error)

    async def check_health(self) -> None:
        """Serve's health check: raises when nothing could be answered."""
        self._door.check()
        await self._gateway.check_health()

    async def close(self) -> None:
        """End what the gateway does by itself, and what replicas generate for it."""
        self._door.close()
        await self._gateway.close()
        if self._tracing is not None:
            await self._tracing.close()

    def __repr__(self) -> str:
        return f"<GuardedGateway {self._door!r} {self._gateway!r}>"


def _error_answer(error: Exception) -> dict[str, Any]:
    from app.responses import error_answer  # noqa: PLC0415 - imports vLLM

    return error_answer(error)


def _trace_headers(traceparent: str | None) -> dict[str, str] | None:
    return None if traceparent is None else {"traceparent": traceparent}


class ServedGateway(GuardedGateway):
    """Serve calls ``__del__`` by hand when it shuts a replica down, and awaits it."""

    def __init__(self, config: AppConfig, **named: Any) -> None:
        """As ``GuardedGateway``, with the traces that ``config`` asks for."""
        log_with("ray.serve")
        traces = trace_config(config.tracing)
        name = serve.get_replica_context().replica_id.unique_id
        super().__init__(config, tracing=None if traces is None else Tracing(traces, "gateway", name), **named)

    async def __del__(self) -> None:
        await self.close()


def ingress() -> type:
    """Return the gateway as a class that Serve can deploy as an ingress."""
    return serve.ingress()(ServedGateway)
