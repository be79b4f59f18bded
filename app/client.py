"""Call FlashServe from any job on the same Ray cluster: OpenAI's requests and answers as builtin types.

    from app.client import connect

    fs = connect()
    fs.chat(model="smollm2-135m-instruct", messages=[{"role": "user", "content": "Hi"}])
    for chunk in fs.chat(model=…, messages=…, stream=True):
        ...

Same meaning as over HTTP: an error answer raises ``ApiError`` with the status, type and field of its HTTP twin.
Needs Ray and nothing else of what the service runs on. Where the caller uses OpenTelemetry, its trace goes on in the
service.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from app.errors import ApiError
from deployments.tracing import caller_traceparent

Json = dict[str, Any]


def connect(application: str = "flashserve", address: str = "auto", *, api_key: str | None = None) -> "FlashServe":
    """Return a client for blocking calls; joins the Ray cluster at ``address`` if this process is in none.

    ``api_key`` is needed where the service has keys.

    Raises:
        ConnectionError: there is no such cluster, or the application doesn't run on it.
    """
    return FlashServe(_handle(application, address), api_key)


def connect_async(
    application: str = "flashserve", address: str = "auto", *, api_key: str | None = None
) -> "AsyncFlashServe":
    """Return a client for use in an event loop, as ``connect``."""
    return AsyncFlashServe(_handle(application, address), api_key)


class FlashServe:
    """Blocking calls. Every method raises ``ApiError`` for an error answer."""

    def __init__(self, gateway: DeploymentHandle, api_key: str | None = None) -> None:
        self._gateway = gateway
        self._api_key = api_key

    @overload
    def chat(self, *, stream: Literal[True], **request: Any) -> Iterator[Json]: ...
    @overload
    def chat(self, *, stream: Literal[False] = False, **request: Any) -> Json: ...
    def chat(self, *, stream: bool = False, **request: Any) -> Json | Iterator[Json]:
        """``/v1/chat/completions``: a completion, or with ``stream=True`` an iterator of its chunks."""
        return self._stream("chat", request) if stream else self._call("chat", request)

    @overload
    def completions(self, *, stream: Literal[True], **request: Any) -> Iterator[Json]: ...
    @overload
    def completions(self, *, stream: Literal[False] = False, **request: Any) -> Json: ...
    def completions(self, *, stream: bool = False, **request: Any) -> Json | Iterator[Json]:
        """``/v1/completions``, as ``chat``."""
        return self._stream("completions", request) if stream else self._call("completions", request)

    def embeddings(self, **request: Any) -> Json:
        """``/v1/embeddings``."""
        return self._call("embeddings", request)

    def tokenize(self, **request: Any) -> Json:
        """``/tokenize``."""
        return self._call("tokenize", request)

    def detokenize(self, **request: Any) -> Json:
        """``/detokenize``."""
        return self._call("detokenize", request)

    def models(self) -> list[Json]:
        """``/v1/models``: a card for every model and adapter."""
        with _reaching():
            return _checked(self._gateway.models.remote(self._api_key).result())

    def _sender(self) -> tuple[str | None, str | None]:
        return self._api_key, caller_traceparent()

    def _call(self, operation: str, request: Json) -> Json:
        with _reaching():
            return _checked(self._gateway.call.remote(operation, request, *self._sender()).result())

    def _stream(self, operation: str, request: Json) -> Iterator[Json]:
        chunks = self._gateway.options(stream=True).stream.remote(operation, request, *self._sender())
        try:
            with _reaching():
                for chunk in chunks:
                    yield _checked(chunk)
        finally:
            # A caller that stops reading no longer wants the rest.
            chunks.cancel()

    def __repr__(self) -> str:
        return f"<FlashServe {self._gateway.deployment_id}>"


class AsyncFlashServe:
    """The same calls for an event loop."""

    def __init__(self, gateway: DeploymentHandle, api_key: str | None = None) -> None:
        self._gateway = gateway
        self._api_key = api_key

    async def chat(self, *, stream: bool = False, **request: Any) -> Any:
        """``/v1/chat/completions``: a completion, or with ``stream=True`` an async iterator of its chunks."""
        return self._stream("chat", request) if stream else await self._call("chat", request)

    async def completions(self, *, stream: bool = False, **request: Any) -> Any:
        """``/v1/completions``, as ``chat``."""
        return self._stream("completions", request) if stream else await self._call("completions", request)

    async def embeddings(self, **request: Any) -> Json:
        """``/v1/embeddings``."""
        return await self._call("embeddings", request)

    async def tokenize(self, **request: Any) -> Json:
        """``/tokenize``."""
        return await self._call("tokenize", request)

    async def detokenize(self, **request: Any) -> Json:
        """``/detokenize``."""
        return await self._call("detokenize", request)

    async def models(self) -> list[Json]:
        """``/v1/models``: a card for every model and adapter."""
        with _reaching():
            return _checked(await self._gateway.models.remote(self._api_key))

    def _sender(self) -> tuple[str | None, str | None]:
        return self._api_key, caller_traceparent()

    async def _call(self, operation: str, request: Json) -> Json:
        with _reaching():
            return _checked(await self._gateway.call.remote(operation, request, *self._sender()))

    async def _stream(self, operation: str, request: Json) -> AsyncIterator[Json]:
        chunks = self._gateway.options(stream=True).stream.remote(operation, request, *self._sender())
        try:
            with _reaching():
                async for chunk in chunks:
                    yield _checked(chunk)
        finally:
            chunks.cancel()

    def __repr__(self) -> str:
        return f"<AsyncFlashServe {self._gateway.deployment_id}>"


def _handle(application: str, address: str) -> DeploymentHandle:
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        return serve.get_app_handle(application)
    except ConnectionError as error:
        message = f"There is no Ray cluster at '{address}': start the service first, or give its address."
        raise ConnectionError(message) from error
    except RayServeException as error:
        message = f"The application '{application}' doesn't run on this Ray cluster."
        raise ConnectionError(message) from error


def _checked(answer: Any) -> Any:
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        raise ApiError(error["code"], error["message"], error["type"], error["param"])
    return answer


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (RayError, RayServeException) as error:
        message = f"The gateway could not be reached ({type(error).__name__})."
        raise ApiError(503, message, "ServiceUnavailableError", None) from error
