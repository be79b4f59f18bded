"""The HTTP API: OpenAI's paths over the OpenAI layer, health and metrics."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelCard, ModelList
from vllm.exceptions import VLLMError

from app.adapter_registry import AdapterRegistry
from app.adapter_routes import add_adapter_routes
from app.callers import Caller
from app.errors import RETRY_AFTER_S, AppError, BodyTooLargeError, ModelNotFoundError
from app.guard import caller_of
from app.holding import answered
from app.names import Target
from app.openai_layer import ANSWER_TYPES, REQUEST_TYPES, STREAMING, OpenAILayer, Operation
from app.refusals import refusal_of
from app.request_record import current_record
from app.responses import BAD_REQUEST_ERRORS, error_answer
from app.status import service_status
from app.ui_routes import add_ui_routes
from deployments.errors import DeploymentError
from deployments.types import EngineDescription

_RETRYABLE = {429, 503}
PATHS: dict[Operation, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
# Ranges, because with them FastAPI leaves out its own 422, which nobody gets here.
_ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}}
# What an operation answers besides JSON, when the request asks for it.
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_STREAM: dict[str, Any] = {"content": {"text/event-stream": {"itemSchema": _EVENT}}}
_BYTES: dict[str, Any] = {
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    }
}
_OTHER_FORMS: dict[Operation, dict[str, Any]] = dict.fromkeys(STREAMING, _STREAM) | {"embeddings": _BYTES}


class ModelCommand(BaseModel):
    """Names the model that an administrator's command is for."""

    model_config = ConfigDict(extra="forbid")
    model: str


class MigrateCommand(ModelCommand):
    """Names the streams that are to move."""

    replica: str | None = None


class Service(Protocol):
    """What the routes need of the gateway."""

    header_wait_s: float
    """How long the headers of a stream wait for its first token."""

    async def progress(self, model: str, caller: Caller) -> str:
        """Return a line about what the caller's requests for a model wait for; none if the model is awake."""
        ...

    async def layer(self) -> OpenAILayer:
        """Return the OpenAI layer, waiting until the models' engines have been reached once."""
        ...

    async def engines(self) -> dict[str, EngineDescription]:
        """Return each model's engine, as one of its replicas describes it."""
        ...

    async def wake(self, model: str) -> None:
        """Wake a model, also one that failed; returns when it is awake."""
        ...

    async def sleep(self, model: str) -> None:
        """Put a model to sleep once its requests have ended."""
        ...

    async def stop(self, model: str) -> None:
        """End a model's engine once its requests have ended; it stays cold until it is asked for."""
        ...

    async def put_model(self, model_id: str, section: dict[str, Any]) -> None:
        """Add a model, or change the one of that id, given as its section of the configuration without the id.

        Raises:
            ConfigError: something in it is wrong; nothing has changed.
            CatalogueError: it could not be kept; nothing has changed.
        """
        ...

    async def remove_model(self, model_id: str) -> None:
        """Serve a model no longer; its requests under way end first. Raises ModelNotFoundError, CatalogueError."""
        ...

    adapters: AdapterRegistry
    """What is done to adapters."""

    async def migrate(self, model: str, replica_id: str | None) -> int:
        """Begin to move a model's streams off a replica, None for the one with most; return how many."""
        ...

    def tenants(self) -> dict[str, Any]:
        """Return who has keys, what is left of their limits, and what is wrong with the file of keys."""
        ...

    async def tiers(self) -> dict[str, Any]:
        """Return what each node's tiers hold."""
        ...

    async def plan(self, model: str | None) -> dict[str, Any]:
        """Return what is expected and planned, with reasons; with ``model`` for it alone, and its demand lately.

        Raises:
            ForecastUnavailableError: there is no forecaster, or it does not answer.
        """
        ...

    async def metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        ...


def build_http_app(service: Service, max_body_bytes: int) -> ASGIApp:
    """Return the ASGI application."""
    app = FastAPI(
        title="FlashServe",
        description="OpenAI's API over models that sleep when nobody uses them.",
        docs_url=None,
        redoc_url=None,
    )
    _add_openai_routes(app, service)
    _add_service_routes(app, service)
    _add_admin_routes(app, service)
    add_adapter_routes(app, lambda: service.adapters, _ERRORS)
    _add_view_routes(app, service)
    add_ui_routes(app)
    # Without the others, Starlette would log a traceback for each of them.
    for kind in (
        AppError, DeploymentError, VLLMError, RequestValidationError, HTTPException, *BAD_REQUEST_ERRORS, Exception,
    ):  # fmt: skip
        app.add_exception_handler(kind, _on_error)
    return _BodyLimit(app, max_body_bytes)


def _add_openai_routes(app: FastAPI, service: Service) -> None:
    for operation, path in PATHS.items():
        answer = {"model": ANSWER_TYPES[operation]} | _OTHER_FORMS.get(operation, {})
        app.post(path, name=operation, responses=_ERRORS | {200: answer})(_handler(service, operation))


def _handler(service: Service, operation: Operation) -> Callable[..., Awaitable[Response]]:
    async def answer(request: Any, raw_request: Request) -> Response:
        layer = await service.layer()
        caller = caller_of(raw_request)

        async def respond() -> Response:
            return _as_response(await layer.answer(operation, request, raw_request, caller))

        header_wait_s = service.header_wait_s if getattr(request, "stream", False) else None
        model = str(request.model)
        return await answered(
            asyncio.ensure_future(respond()),
            raw_request,
            header_wait_s=header_wait_s,
            progress=lambda: service.progress(model, caller),
        )

    answer.__annotations__["request"] = Annotated[REQUEST_TYPES[operation], Body()]
    return answer


def _add_service_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=_ERRORS, response_model=ModelList)
    async def models(request: Request) -> Any:
        return {"object": "list", "data": await (await service.layer()).models(caller_of(request))}

    # ``:path`` because ids may hold slashes.
    @app.get("/v1/models/{model_id:path}", responses=_ERRORS, response_model=ModelCard)
    async def model(model_id: str, request: Request) -> Any:
        if not model_id:
            raise ModelNotFoundError(model_id)
        return await (await service.layer()).model(model_id, caller_of(request))

    @app.get("/health", responses={503: {}})
    async def health(request: Request) -> JSONResponse:
        engines, reach = await service.engines(), caller_of(request).reach
        states = {model: engine["state"] for model, engine in engines.items() if reach.holds(Target(model))}
        # Asleep is well: whoever asks wakes it.
        healthy = all(engine["is_up"] for engine in engines.values())
        failed = any(engine["state"] == "failed" for engine in engines.values())
        status = "ok" if healthy else "failed" if failed else "unavailable"
        return JSONResponse({"status": status, "models": states}, 200 if healthy else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        return await service.metrics()


def _add_admin_routes(app: FastAPI, service: Service) -> None:
    @app.get("/admin/models")
    async def admin_models() -> dict[str, dict[str, EngineDescription]]:
        return {"models": await service.engines()}

    @app.put("/admin/models/{model_id:path}", responses=_ERRORS)
    async def admin_put_model(model_id: str, section: dict[str, Any]) -> dict[str, dict[str, EngineDescription]]:
        await service.put_model(model_id, section)
        return {"models": await service.engines()}

    @app.delete("/admin/models/{model_id:path}", responses=_ERRORS)
    async def admin_remove_model(model_id: str) -> dict[str, dict[str, EngineDescription]]:
        await service.remove_model(model_id)
        return {"models": await service.engines()}

    @app.post("/admin/wake", responses=_ERRORS)
    async def admin_wake(command: ModelCommand) -> dict[str, dict[str, EngineDescription]]:
        await service.wake(command.model)
        return {"models": await service.engines()}

    @app.post("/admin/sleep", responses=_ERRORS)
    async def admin_sleep(command: ModelCommand) -> dict[str, dict[str, EngineDescription]]:
        await service.sleep(command.model)
        return {"models": await service.engines()}

    @app.post("/admin/stop", responses=_ERRORS)
    async def admin_stop(command: ModelCommand) -> dict[str, dict[str, EngineDescription]]:
        await service.stop(command.model)
        return {"models": await service.engines()}

    @app.post("/admin/migrate", responses=_ERRORS)
    async def admin_migrate(command: MigrateCommand) -> dict[str, int]:
        return {"moving": await service.migrate(command.model, command.replica)}


def _add_view_routes(app: FastAPI, service: Service) -> None:
    @app.get("/admin/plan", responses=_ERRORS)
    async def admin_plan(model: str | None = None) -> dict[str, Any]:
        return await service.plan(model)

    @app.get("/admin/status")
    async def admin_status() -> dict[str, Any]:
        return await service_status(service)

    @app.get("/admin/tenants")
    async def admin_tenants() -> dict[str, Any]:
        return service.tenants()

    @app.get("/admin/tiers")
    async def admin_tiers() -> dict[str, dict[str, Any]]:
        return {"nodes": await service.tiers()}


def _as_response(result: Any) -> Response:
    if isinstance(result, Response):
        return result
    if isinstance(result, ErrorResponse):
        return _error_response(result.model_dump())
    if isinstance(result, AsyncGenerator):
        return StreamingResponse(result, media_type="text/event-stream")
    return JSONResponse(result.model_dump())


def _error_response(body: dict[str, Any]) -> JSONResponse:
    status = body["error"]["code"]
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in _RETRYABLE else None
    return JSONResponse(body, status, headers)


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    current_record().refusal = refusal_of(error) or current_record().refusal
    return _error_response(error_answer(error))


class _BodyLimit:
    """Refuses bodies over the limit with 413 before anything parses them."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit_bytes:
            await self._refuse(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit_bytes:
                await self._refuse(scope, receive, send)
                return
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replayed() -> Message:
            # After the body comes only the news that the client has gone.
            return pending.pop() if pending else await receive()

        await self._app(scope, replayed, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = BodyTooLargeError(self._limit_bytes)
        current_record().refusal = refusal_of(error)
        response = _error_response(error_answer(error))
        await response(scope, receive, send)
