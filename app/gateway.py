"""The gateway: Serve's ingress deployment, with the OpenAI API over HTTP and the same API for handle calls.

Covers: the replica's life (feed socket, clients, OpenAI layer), handle methods. Does not cover: paths (``routes``),
answers (``openai_layer``), the wiring (``builder``).
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.responses import Response
from starlette.types import ASGIApp

from app.attempts import translated
from app.carrier import ModelPool
from app.engine_client import RemoteEngineClient
from app.errors import AppError, InvalidRequestError
from app.metrics import scrape
from app.openai_layer import REQUEST_TYPES, OpenAILayer, Operation
from app.responses import error_answer
from app.routes import build_http_app
from app.streams import TokenStreams
from deployments.engine_args import engine_config
from deployments.errors import DeploymentError
from deployments.types import AdapterRef, EngineDescription, ModelSpec
from storage.checkpoint import SourceCache
from storage.store import StoreConfig

logger = logging.getLogger(__name__)

_PARSERS = {operation: TypeAdapter(kind) for operation, kind in REQUEST_TYPES.items()}


class Gateway:
    """Plain class; ``ingress`` is what Serve deploys."""

    def __init__(  # noqa: PLR0913, PLR0917 - everything a gateway is made of comes with its deployment
        self,
        specs: list[ModelSpec],
        frontends: Mapping[str, Mapping[str, Any]],
        pools: Mapping[str, Any],
        nodes: Any,
        storage: StoreConfig,
        max_body_bytes: int,
        header_wait_s: float,
    ) -> None:
        """``frontends`` are vLLM's API server arguments and ``pools`` Serve handles, by model id; ``nodes`` is one."""
        self._specs = {spec.id: spec for spec in specs}
        self._nodes = nodes
        self._sources = SourceCache(storage.disk_dir, storage.s3_endpoint_url)
        self._frontends = frontends
        self._pools = pools
        self._max_body_bytes = max_body_bytes
        self.header_wait_s = header_wait_s
        self._streams = TokenStreams()
        self._listening = asyncio.get_running_loop().create_task(self._listen())
        # Each model's part of the layer for itself, so that one that can't be served takes nothing from the others.
        self._building: dict[str, asyncio.Task[None]] = {}
        self._beginning = [asyncio.get_running_loop().create_task(self._begin(spec.id)) for spec in specs]

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook: the HTTP application of this replica."""
        return build_http_app(self, self._max_body_bytes)

    async def layer(self) -> OpenAILayer:
        """See ``routes.Service.layer``."""
        return await asyncio.shield(self._listening)

    async def engines(self) -> dict[str, EngineDescription]:
        """See ``routes.Service.engines``."""
        handles = {handle.deployment_id: handle for handle in self._pools.values()}.values()
        described: dict[str, EngineDescription] = {}
        for engines in await asyncio.gather(*(_described(handle) for handle in handles)):
            described |= engines
        return described

    async def wake(self, model: str) -> None:
        """See ``routes.Service.wake``."""
        await self._command("wake", model)

    async def sleep(self, model: str) -> None:
        """See ``routes.Service.sleep``."""
        await self._command("sleep", model)

    async def stop(self, model: str) -> None:
        """See ``routes.Service.stop``."""
        await self._command("stop", model)

    async def _command(self, command: str, model: str) -> None:
        model_id = (await self.layer()).model_id(model)
        try:
            await getattr(self._pools[model_id], command).remote(model_id)
        except (RayError, RayServeException, DeploymentError) as error:
            raise translated(error, model_id) from error

    async def progress(self, model: str) -> str:
        """See ``routes.Service.progress``."""
        try:
            model_id = (await self.layer()).model_id(model)
            engine = (await _described(self._pools[model_id]))[model_id]
        except (AppError, RayError, RayServeException) as error:
            return f"{model}: {error}"
        takes_s = engine["woken_in_s"] if engine["state"] == "waking" else engine["started_in_s"]
        left = f", about {max(0.0, takes_s - engine['since_s']):.1f} s left" if takes_s is not None else ""
        return f"{model_id} is {engine['state']}{left if engine['state'] in {'starting', 'waking'} else ''}"

    async def tiers(self) -> dict[str, Any]:
        """See ``routes.Service.tiers``."""
        return await self._nodes.tiers.remote()

    async def metrics(self) -> str:
        """See ``routes.Service.metrics``."""
        return await scrape()

    async def call(self, operation: Operation, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a request given as OpenAI's JSON body: builtin types in and out, an error as OpenAI's error object."""
        try:
            return await _as_builtins(await self._answer(operation, body))
        except Exception as error:  # noqa: BLE001 - every error becomes an answer, as over HTTP
            return error_answer(error)

    async def stream(self, operation: Operation, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of a streamed answer as builtin types; an error is one chunk with OpenAI's error object."""
        try:
            result = await self._answer(operation, body | {"stream": True})
            if not isinstance(result, AsyncGenerator):
                yield await _as_builtins(result)
                return
            async with aclosing(result):
                async for event in result:
                    data = event.removeprefix("data: ").strip()
                    if data and data != "[DONE]":
                        yield json.loads(data)
        except Exception as error:  # noqa: BLE001 - as in ``call``
            yield error_answer(error)

    async def models(self) -> list[dict[str, Any]]:
        """Return a card for every model and adapter."""
        return await (await self.layer()).models()

    async def check_health(self) -> None:
        """Serve's health check: raises when no tokens could be received."""
        if self._listening.done():
            self._listening.result()

    async def close(self) -> None:
        """Close the feeds, which ends what replicas generate for this gateway."""
        for task in (self._listening, *self._beginning, *self._building.values()):
            task.cancel()
        self._streams.close()

    async def _answer(self, operation: Operation, body: dict[str, Any]) -> Any:
        parser = _PARSERS.get(operation)
        if parser is None:
            raise InvalidRequestError(f"There is no operation '{operation}'; there are {', '.join(_PARSERS)}.")
        try:
            request = parser.validate_python(body)
        except ValidationError as error:
            raise RequestValidationError(error.errors(), body=body) from error
        return await (await self.layer()).answer(operation, request)

    async def _listen(self) -> OpenAILayer:
        await self._streams.listen(ray.util.get_node_ip_address())
        return OpenAILayer(list(self._specs.values()), self._prepare)

    async def _begin(self, model_id: str) -> None:
        try:
            await self._prepare(model_id)
        except Exception:
            # Requests for it say so too; they try again.
            logger.exception("model %s can't be served yet", model_id)

    async def _prepare(self, model_id: str) -> None:
        """Return when a model's part of the layer is built; a build that failed is tried again by the next request."""
        building = self._building.get(model_id)
        if building is None or (building.done() and building.exception() is not None):
            building = asyncio.get_running_loop().create_task(self._build(self._specs[model_id]))
            self._building[model_id] = building
        # Shielded: one request's end must not end what others wait for.
        await asyncio.shield(building)

    async def _build(self, configured: ModelSpec) -> None:
        layer = await self.layer()
        source = await asyncio.to_thread(self._sources.localize, configured.source or configured.path)
        spec = replace(configured, path=str(source.directory))
        config = await asyncio.to_thread(engine_config, spec)
        replicas = self._pools[spec.id]
        try:
            tasks = await replicas.supported_tasks.remote(spec.id)
        except (RayError, RayServeException, DeploymentError) as error:
            raise translated(error, spec.id) from error
        adapters: dict[str, AdapterRef] = {
            adapter.id: {"id": adapter.id, "path": adapter.path, "digest": adapter.digest} for adapter in spec.adapters
        }
        client = RemoteEngineClient(
            spec.id,
            config=config,
            supported_tasks=tasks,
            pool=ModelPool(replicas),
            streams=self._streams,
            adapters=adapters,
        )
        await layer.add(spec, client, self._frontends.get(spec.id, {}))
        logger.info("gateway serves %s", layer)

    def __repr__(self) -> str:
        return f"<Gateway {list(self._specs)}, {self._streams!r}>"


async def _described(handle: Any) -> dict[str, EngineDescription]:
    return await handle.describe.remote()


async def _as_builtins(result: Any) -> dict[str, Any]:
    if isinstance(result, AsyncGenerator):
        await result.aclose()
        message = "A stream is asked for: use `stream`."
        raise InvalidRequestError(message, "stream")
    if isinstance(result, Response):
        return json.loads(bytes(result.body))
    return result.model_dump()


class ServedGateway(Gateway):
    """Serve calls ``__del__`` by hand when it shuts a replica down, and awaits it."""

    async def __del__(self) -> None:
        await self.close()


def ingress() -> type:
    """Return the gateway as a class that Serve can deploy as an ingress."""
    return serve.ingress()(ServedGateway)
