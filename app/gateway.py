"""The gateway: the OpenAI API for HTTP and for handle calls.

Covers: the replica's life (feed socket, clients, OpenAI layer), answering for whoever was let in. Does not cover:
letting in, and what Serve deploys (``served_gateway``), paths (``routes``), answers (``openai_layer``), the wiring
(``builder``).
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
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.responses import Response

from app.accepted import AcceptedModels
from app.adapter_registry import AdapterRegistry
from app.attempts import translated
from app.callers import Caller
from app.config import AppConfig, PoolConfig, parse_model
from app.door import Door
from app.engine_client import RemoteEngineClient
from app.engine_states import UNHEARD_OF
from app.entry import Entry, by_engine, without_adapters
from app.errors import AppError, InvalidRequestError, ModelNotFoundError
from app.fair_queue import FairQueue
from app.fleet import Command, Fleets
from app.forecasts import Forecasts
from app.metrics import scrape
from app.model_pool import ModelPool
from app.model_specs import check_model
from app.openai_layer import REQUEST_TYPES, OpenAILayer, Operation
from app.responses import error_answer
from app.stream_metrics import StreamMetrics
from app.streams import TokenStreams
from deployments.engine_args import engine_config
from deployments.errors import DeploymentError
from deployments.health import check_goes_on
from deployments.placements import PLACEMENTS
from deployments.types import EngineDescription, MoveRequest
from storage.adapter_dram import AdapterDram
from storage.adapter_files import AdapterFiles
from storage.checkpoint import SourceCache
from storage.store import StoreConfig

logger = logging.getLogger(__name__)

_RETRY_S = 0.5
_PARSERS = {operation: TypeAdapter(kind) for operation, kind in REQUEST_TYPES.items()}


class Gateway:
    """Plain class; ``served_gateway`` has what Serve deploys."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a gateway is wired to
        self,
        config: AppConfig,
        catalogue: Any,
        pools: Mapping[str, Any],
        nodes: Any,
        storage: StoreConfig,
        door: Door,
        forecaster: Any = None,
    ) -> None:
        """``catalogue``, ``pools`` (by name), ``nodes`` and ``forecaster`` (None without one) are Serve handles."""
        self._config = config
        self._door = door
        self._catalogue = catalogue
        self._pools = pools
        self._nodes = nodes
        self._sources = SourceCache(storage.disk_dir, storage.s3_endpoint_url)
        self._accepted = AcceptedModels(storage.disk_dir)
        self.header_wait_s = config.admission.header_wait_s
        may_be_empty = {pool.name for pool in config.pools if pool.min_replicas == 0}
        self._fleets = Fleets(pools, PLACEMENTS, may_be_empty)
        # Where there are no tenants there is one line, and Serve has it.
        self._lines = {} if door.is_open else {pool.name: self._line(pool) for pool in config.pools}
        self._streams = TokenStreams(self._fleets)
        self._forecasts = Forecasts(forecaster)
        self._entries: dict[str, Entry] = {}
        self.adapters = AdapterRegistry(
            catalogue,
            files=AdapterFiles(
                storage.disk_dir,
                storage.s3_endpoint_url,
                AdapterDram(storage.adapters_in, storage.adapter_dram_bytes),
            ),
            sources=self._sources,
            entries=self._listed,
            refresh=self._refresh,
            resident=self._resident,
            tenants=door.tenants,
        )
        self._layer = OpenAILayer(self._prepare, self.adapters.discover)
        self._version: str | None = None
        self._taken = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._refreshes = 0
        # Each model's part of the layer for itself, so that one that can't be served takes nothing from the others.
        self._building: dict[str, asyncio.Task[None]] = {}
        self._beginning: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._listening = loop.create_task(self._listen())
        self._following = loop.create_task(self._follow())

    async def layer(self) -> OpenAILayer:
        """See ``routes.Service.layer``."""
        await asyncio.shield(self._listening)
        while self._version is None:
            await self._taken.wait()
        return self._layer

    async def engines(self) -> dict[str, EngineDescription]:
        """See ``routes.Service.engines``."""
        await self.layer()
        return dict.fromkeys(by_engine(self._entries.values()), UNHEARD_OF) | await self._fleets.describe()

    async def wake(self, model: str) -> None:
        """See ``routes.Service.wake``."""
        await self._command("wake", model)

    async def sleep(self, model: str) -> None:
        """See ``routes.Service.sleep``."""
        await self._command("sleep", model)

    async def stop(self, model: str) -> None:
        """See ``routes.Service.stop``."""
        await self._command("stop", model)

    async def migrate(self, model: str, replica_id: str | None) -> int:
        """See ``routes.Service.migrate``."""
        model_id, entry = await self._engine(model)
        source_id = replica_id or PLACEMENTS.busiest(model_id)
        if source_id is None:
            return 0
        if not PLACEMENTS.has_another(source_id):
            message = f"There is no other replica that streams of '{model}' could go to."
            raise InvalidRequestError(message, "model")
        order: MoveRequest = {"model_id": model_id, "place": {"replica_id": source_id}}
        try:
            return await self._pools[entry.pool].move.remote(order)
        except (RayError, RayServeException, DeploymentError) as error:
            raise translated(error, model_id) from error

    async def _command(self, command: Command, model: str) -> None:
        model_id, entry = await self._engine(model)
        try:
            await self._fleets.of(entry.pool).command(command, model_id)
        except (RayError, RayServeException, DeploymentError) as error:
            raise translated(error, model_id) from error

    async def _engine(self, name: str) -> tuple[str, Entry]:
        """Return the id and the model of an engine: of a tenant's own by that id, else of everybody's by any name."""
        layer = await self.layer()
        engines = by_engine(self._entries.values())
        model_id = name if name in engines else layer.model_id(name)
        return model_id, engines[model_id]

    async def put_model(self, model_id: str, section: dict[str, Any]) -> None:
        """See ``routes.Service.put_model``."""
        model = parse_model(section | {"id": model_id})
        pool = self._config.pool_of(model_id)
        entry = await asyncio.to_thread(check_model, model, pool, self._sources, self._accepted)
        await self._change("put", model_id, entry)

    async def remove_model(self, model_id: str) -> None:
        """See ``routes.Service.remove_model``."""
        await self.layer()
        if model_id not in self._entries:
            raise ModelNotFoundError(model_id)
        await self._change("remove", model_id, model_id)

    async def _change(self, method: str, model_id: str, argument: Any) -> None:
        try:
            await getattr(self._catalogue, method).remote(argument)
            await self._refresh()
        except (RayError, RayServeException) as error:
            raise translated(error, model_id) from error

    async def _refresh(self) -> None:
        # Whoever gets the answer to a change finds it so here; other gateways hear of it at the same time.
        # One after the other, so that an older list never comes after a newer one.
        async with self._refreshing:
            found = await self._catalogue.entries.remote(None)
            self._refreshes += 1
            self._take(found)

    async def _listed(self) -> dict[str, Entry]:
        await self.layer()
        return self._entries

    async def _resident(self) -> dict[str, set[str]]:
        """Return by model the adapters that any of its engines has in memory, by their names there."""
        engines, found = by_engine(self._entries.values()), dict[str, set[str]]()
        for engine_id, names in (await self._fleets.adapters()).items():
            if engine_id in engines:
                found.setdefault(engines[engine_id].spec.id, set()).update(names)
        return found

    def tenants(self) -> dict[str, Any]:
        """See ``routes.Service.tenants``."""
        return self._door.describe()

    async def progress(self, model: str, caller: Caller) -> str:
        """See ``routes.Service.progress``."""
        try:
            model_id = (await self.layer()).model_id(model, caller)
            entry = self._entries[model_id]
            engine = (await self._fleets.of(entry.pool).describe())[entry.engine_id(caller.name)]
        except ModelNotFoundError:
            # Not known yet: a name that is nobody's was refused before anybody asks for progress.
            return f"an adapter called {model} is looked for"
        except (AppError, KeyError, RayError, RayServeException) as error:
            return f"{model}: {error}"
        if engine["state"] == "awake":
            return ""
        takes_s = engine["woken_in_s"] if engine["state"] == "waking" else engine["started_in_s"]
        left = f", about {max(0.0, takes_s - engine['since_s']):.1f} s left" if takes_s is not None else ""
        return f"{model_id} is {engine['state']}{left if engine['state'] in {'starting', 'waking'} else ''}"

    async def tiers(self) -> dict[str, Any]:
        """See ``routes.Service.tiers``."""
        return await self._nodes.tiers.remote()

    async def plan(self, model: str | None) -> dict[str, Any]:
        """See ``routes.Service.plan``."""
        return await self._forecasts.plan(None if model is None else (await self._engine(model))[0])

    async def metrics(self) -> str:
        """See ``routes.Service.metrics``."""
        return await scrape()

    async def call(self, operation: Operation, body: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """Answer a request given as OpenAI's JSON body: builtin types in and out, an error as OpenAI's error object."""
        try:
            return await _as_builtins(await self._answer(operation, body, caller))
        except Exception as error:  # noqa: BLE001 - every error becomes an answer, as over HTTP
            return error_answer(error)

    async def stream(
        self, operation: Operation, body: dict[str, Any], caller: Caller
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the chunks of a streamed answer as builtin types; an error is one chunk with OpenAI's error object."""
        try:
            result = await self._answer(operation, body | {"stream": True}, caller)
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

    async def models(self, caller: Caller) -> list[dict[str, Any]]:
        """Return a card for every model and adapter that the caller reaches."""
        return await (await self.layer()).models(caller)

    async def check_health(self) -> None:
        """Serve's health check: raises when no tokens could be received."""
        check_goes_on(self._listening, "listening for tokens", may_end=True)
        check_goes_on(self._following, "following which models there are")
        self._fleets.check()

    async def close(self) -> None:
        """Close the feeds, which ends what replicas generate for this gateway."""
        for task in (self._listening, self._following, *self._beginning, *self._building.values()):
            task.cancel()
        self._forecasts.close()
        self._fleets.close()
        self._streams.close()

    async def _answer(self, operation: Operation, body: dict[str, Any], caller: Caller) -> Any:
        parser = _PARSERS.get(operation)
        if parser is None:
            raise InvalidRequestError(f"There is no operation '{operation}'; there are {', '.join(_PARSERS)}.")
        try:
            request = parser.validate_python(body)
        except ValidationError as error:
            raise RequestValidationError(error.errors(), body=body) from error
        return await (await self.layer()).answer(operation, request, caller=caller)

    def _line(self, pool: PoolConfig) -> FairQueue:
        """Return the line for a pool's places: this gateway's part of what its replicas take at once."""

        def places() -> int:
            return max(1, self._fleets.of(pool.name).size * pool.max_ongoing_requests // self._config.gateway.replicas)

        admission = self._config.admission
        return FairQueue(places, admission.max_queued_requests, admission.max_wait_s)

    async def _listen(self) -> None:
        await self._streams.listen(ray.util.get_node_ip_address())
        self._fleets.run(self._streams.reply_to)

    async def _follow(self) -> None:
        while True:
            refreshes = self._refreshes
            try:
                found = await self._catalogue.entries.remote(self._version)
                if refreshes == self._refreshes:
                    self._take(found)
            except (RayError, RayServeException) as error:
                logger.warning("the catalogue does not answer: %s", error)
                await asyncio.sleep(_RETRY_S)

    def _take(self, found: tuple[str, list[Entry]] | None) -> None:
        if found is None or found[0] == self._version:
            return
        self._version, entries = found
        before, self._entries = self._entries, {entry.spec.id: entry for entry in entries}
        self._layer.name([entry.spec for entry in entries])
        for model_id in before | self._entries:
            if without_adapters(before.get(model_id)) == without_adapters(self._entries.get(model_id)):
                continue
            self._building.pop(model_id, None)
            self._layer.remove(model_id)
            if model_id in self._entries:
                beginning = asyncio.get_running_loop().create_task(self._begin(model_id))
                self._beginning.add(beginning)
                beginning.add_done_callback(self._beginning.discard)
        self._taken.set()

    async def _begin(self, model_id: str) -> None:
        try:
            await self._prepare(model_id)
        except Exception:
            # Requests for it say so too; they try again.
            logger.exception("model %s can't be served yet", model_id)

    async def _prepare(self, model_id: str) -> None:
        """Return when a model's part of the layer is built; a build that failed is tried again by the next request."""
        while True:
            if model_id not in self._entries:
                raise ModelNotFoundError(model_id)
            building = self._building.get(model_id)
            if building is None or (building.done() and building.exception() is not None):
                building = asyncio.get_running_loop().create_task(self._build(self._entries[model_id]))
                self._building[model_id] = building
            # Not awaited itself: one request's end must not end what others wait for.
            await asyncio.wait([building])
            if self._building.get(model_id) is building:
                return building.result()

    async def _build(self, entry: Entry) -> None:
        configured = entry.spec
        await self.layer()
        source = await asyncio.to_thread(self._sources.localize, configured.source or configured.path)
        spec = replace(configured, path=str(source.directory))
        config = await asyncio.to_thread(engine_config, spec)
        replicas, fleet = self._pools[entry.pool], self._fleets.of(entry.pool)
        try:
            tasks = await replicas.supported_tasks.remote(spec.id)
        except (RayError, RayServeException, DeploymentError) as error:
            raise translated(error, spec.id) from error
        client = RemoteEngineClient(
            configured,
            own=entry.tenants_specs(),
            config=config,
            supported_tasks=tasks,
            pool=ModelPool(
                replicas,
                choose=fleet.place_for,
                elsewhere_s=fleet.elsewhere_s,
                lose_engine=fleet.lose_engine,
                metrics=StreamMetrics(spec.id),
                demand=self._forecasts.demand,
                line=self._lines.get(entry.pool),
            ),
            streams=self._streams,
        )
        await self._layer.add(spec, client, entry.frontend)
        if without_adapters(self._entries.get(spec.id)) != without_adapters(entry):
            # Changed meanwhile; the next request builds it anew.
            self._building.pop(spec.id, None)
            self._layer.remove(spec.id)
        logger.info("gateway serves %s", self._layer)

    def __repr__(self) -> str:
        return f"<Gateway {list(self._entries)}, {self._streams!r}>"


async def _as_builtins(result: Any) -> dict[str, Any]:
    if isinstance(result, AsyncGenerator):
        await result.aclose()
        message = "A stream is asked for: use `stream`."
        raise InvalidRequestError(message, "stream")
    if isinstance(result, Response):
        return json.loads(bytes(result.body))
    return result.model_dump()
