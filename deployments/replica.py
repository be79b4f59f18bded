"""The engine replica: a Serve deployment that owns engines and streams their tokens to gateways.

Covers: one Serve call per generated sequence with its tokens on the feed, health. Does not cover: which engines are
awake (``residents``), which replica gets a request (Serve's router) and text (the gateway).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray import serve

from deployments.adapter_leases import AdapterLeases
from deployments.adapter_preload import AdapterPreloader
from deployments.engine import Engine
from deployments.errors import EngineDiedError, EngineUnavailableError, FeedError, ReplicaLeavingError
from deployments.event_log import log_with
from deployments.expected_rates import RatesTeller, snapshot_rates
from deployments.feed import Feeds, GatewayFeed
from deployments.hosting import HostedModels
from deployments.imports import without_collecting
from deployments.news import Newsroom
from deployments.nodes import NodeClient
from deployments.plan_follower import PlanFollower
from deployments.request_trace import TracedDeltas
from deployments.residency import Limits
from deployments.residency_metrics import ResidencyMetrics
from deployments.residents import Residents
from deployments.start_metrics import StartMetrics
from deployments.tracing import NO_SPAN, Span, TraceConfig, Tracing
from deployments.types import (
    Arrival,
    DescribeRequest,
    Embedding,
    EmbedRequest,
    EngineDescription,
    GenerateRequest,
    GenerateSummary,
    ModelCommand,
    ModelSpec,
    MoveRequest,
    NewsRequest,
)
from deployments.wire import MAKE_ROOM, MOVE, TokenDelta
from storage.adapter_dram import AdapterDram
from storage.adapter_files import AdapterFiles
from storage.store import StoreConfig

# How long a request waits for the replica to hear of a model, or of its change, as the gateway has.
CATCH_UP_S = 5.0


class EngineReplica:
    """Plain class; ``ServedEngineReplica`` is what Serve deploys. Every argument and result is a builtin type."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a replica is made of
        self,
        catalogue: Any,
        pool: str,
        make_engine: Callable[[ModelSpec], Engine],
        limits: Limits,
        max_wait_s: float,
        replica_id: str = "",
        tier_of: Callable[[str], str] = lambda _: "",
        files: AdapterFiles | None = None,
        sized: Callable[[ModelSpec], ModelSpec] = lambda spec: spec,
    ) -> None:
        """``catalogue`` is a Serve handle that knows the models of ``pool``; ``tier_of`` tells where a snapshot is.

        ``files`` are the node's copies of adapters; without them adapters are used where they are. ``sized`` gives a
        model the ``awake_bytes`` that only its device tells.
        """
        self._feeds = Feeds()
        self._residents = Residents([], make_engine, limits, max_wait_s, tier_of)
        self._residents.on_drain = self._make_room
        self._residents.run()
        self._is_leaving = False
        self._streaming: dict[str, tuple[str, GatewayFeed]] = {}
        self._leases = AdapterLeases(files)
        self._hosted = HostedModels(
            catalogue, pool, lambda specs: self._residents.host([sized(spec) for spec in specs]), self._leases.keep
        )
        self._hosted.run()
        self._news = Newsroom(pool, replica_id, self._residents)
        self._news.run()
        self._plan: PlanFollower | None = None
        self._tracing: Tracing | None = None

    def follow(self, forecaster: str, pool: str, replica_id: str) -> PlanFollower:
        """Follow the plan of the actor ``forecaster`` from now on."""
        self._plan = PlanFollower(forecaster, pool, replica_id, self._residents)
        self._plan.run()
        return self._plan

    def trace(self, tracing: Tracing) -> None:
        """Record spans of requests that are traced."""
        self._tracing = tracing

    def _span(self, name: str, request: GenerateRequest | EmbedRequest) -> Span:
        if self._tracing is None:
            return NO_SPAN
        return self._tracing.go_on(
            name,
            request.get("traceparent"),
            gen_ai__request__model=request["model_id"],
            flashserve__sequence=request["stream_id"],
            flashserve__tenant=request.get("tenant") or None,
        )

    async def generate(self, request: GenerateRequest) -> GenerateSummary:
        """Generate one sequence; its deltas go to the gateway's feed, the summary comes back when it has ended.

        Cancelling the call stops the generation; so does the gateway's end.

        Raises:
            UnknownModelError, EngineUnavailableError, EngineDiedError, RequestRejectedError,
            ResumeUnsupportedError, FeedError.
        """
        with self._span("generate", request) as span:
            return await self._generate_for(request, span)

    async def _generate_for(self, request: GenerateRequest, span: Span) -> GenerateSummary:
        await self._catch_up(request["model_id"], request.get("revision"))
        feed = await self._feeds.open(request["reply_to"])
        work = asyncio.ensure_future(self._generate(request, feed, span))
        forget = feed.on_lost(work.cancel)
        try:
            return await work
        except EngineDiedError as error:
            if self._is_leaving:
                # It was ended: no reason to suspect the request.
                raise ReplicaLeavingError(request["model_id"], "the replica is stopping") from error
            raise
        except asyncio.CancelledError:
            if feed.lost:
                raise FeedError(feed.address, "the gateway went away") from None
            work.cancel()
            await asyncio.wait([work])
            raise
        finally:
            forget()

    async def _generate(self, request: GenerateRequest, feed: GatewayFeed, span: Span) -> GenerateSummary:
        stream_id, model_id = request["stream_id"], request["model_id"]
        self._streaming[stream_id] = (model_id, feed)
        try:
            async with (
                self._leases.held(model_id, request.get("adapter")) as adapter,
                self._residents.use(
                    model_id, keep_awake_s=request.get("keep_awake_s"), tenant=request.get("tenant", ""), span=span
                ) as engine,
            ):
                begin_s = time.monotonic()
                try:
                    with self._residents.receiving(model_id, _arrival_of(request)):
                        return await self._stream(engine, {**request, "adapter": adapter}, feed, span)
                finally:
                    self._residents.served(model_id, time.monotonic() - begin_s)
        finally:
            self._streaming.pop(stream_id, None)

    async def _stream(self, engine: Engine, request: GenerateRequest, feed: GatewayFeed, span: Span) -> GenerateSummary:
        token_count, begin_s, load = 0, time.monotonic(), engine.unfinished()
        deltas, traced = engine.generate(request), TracedDeltas(span) if span else None
        try:
            async for delta in deltas:
                if token_count == 0:
                    first_s = time.monotonic() - begin_s
                    self._news.first_token(request["model_id"], first_s, load)
                    self._residents.first_token(request["model_id"], first_s, load)
                token_count += len(delta.token_ids)
                if traced is not None:
                    traced.take(delta)
                feed.send(delta)
                await feed.drain()
                if delta.finish_reason is not None:
                    return {"token_count": token_count, "finish_reason": delta.finish_reason}
        finally:
            if traced is not None:
                traced.end()
            # Here and not whenever the generator is collected: closing it is what stops the generation.
            await deltas.aclose()  # type: ignore[attr-defined]
        raise EngineDiedError(request["model_id"])

    async def move(self, request: MoveRequest) -> int:
        """Have the gateways take the streams of a model to other replicas; return how many, before any has gone."""
        return self._ask_of_streams(request["model_id"], MOVE)

    def _make_room(self, model_id: str) -> None:
        self._ask_of_streams(model_id, MAKE_ROOM)

    def _ask_of_streams(self, model_id: str, what: str) -> int:
        streams = [(key, feed) for key, (model, feed) in self._streaming.items() if model == model_id]
        for stream_id, feed in streams:
            feed.send(TokenDelta(stream_id, [], stop_reason=what))
        return len(streams)

    async def embed(self, request: EmbedRequest) -> Embedding:
        """Pool one prompt. Raises as ``generate``, but for FeedError."""
        await self._catch_up(request["model_id"], request.get("revision"))
        model_id = request["model_id"]
        with self._span("embed", request) as span:
            async with (
                self._leases.held(model_id, request.get("adapter")) as adapter,
                self._residents.use(model_id, tenant=request.get("tenant", ""), span=span) as engine,
            ):
                begin_s, load = time.monotonic(), engine.unfinished()
                try:
                    embedding = await engine.embed({**request, "adapter": adapter})
                    self._residents.first_token(model_id, time.monotonic() - begin_s, load)
                    return embedding
                finally:
                    span.lasted("prefill", begin_s, time.monotonic())
                    self._residents.served(model_id, time.monotonic() - begin_s)

    async def _catch_up(self, model_id: str, revision: str | None) -> None:
        """Let the news of a model arrive that the gateway has heard of already."""
        if self._residents.hosts(model_id, revision):
            return
        await self._hosted.until(lambda: self._residents.hosts(model_id, revision), CATCH_UP_S)
        if self._residents.hosts(model_id, None) and not self._residents.hosts(model_id, revision):
            raise EngineUnavailableError(model_id, "it is being changed")

    async def tell_news(self, request: NewsRequest) -> None:
        """Tell a gateway from now on how things stand here. Raises FeedError."""
        feed = await self._feeds.open(request["reply_to"])
        await self._hosted.until(lambda: True)
        self._news.tell(feed)

    async def describe(
        self,
        request: DescribeRequest | None = None,  # noqa: ARG002 - it says who is asked, which the router has read
    ) -> dict[str, EngineDescription]:
        """Return each model's engine with its state."""
        await self._hosted.until(lambda: True)
        return self._residents.describe()

    async def adapters(self, request: DescribeRequest) -> dict[str, list[str]]:  # noqa: ARG002 - as ``describe``
        """Return by model the names inside its engine of the adapters that it has in memory."""
        await self._hosted.until(lambda: True)
        return await self._residents.adapters()

    async def supported_tasks(self, model_id: str) -> list[str]:
        """Return the tasks of the model's engine, waiting for its first start.

        Raises:
            UnknownModelError, EngineUnavailableError.
        """
        await self._catch_up(model_id, None)
        return await self._residents.supported_tasks(model_id)

    async def wake(self, command: ModelCommand) -> None:
        """Wake a model ahead of requests, also one that failed. Raises as ``supported_tasks``."""
        await self._catch_up(command["model_id"], None)
        await self._residents.wake(command["model_id"])

    async def sleep(self, command: ModelCommand) -> None:
        """Put a model to sleep once its requests have ended. Raises UnknownModelError."""
        await self._catch_up(command["model_id"], None)
        await self._residents.sleep(command["model_id"])

    async def stop(self, command: ModelCommand) -> None:
        """End a model's engine once its requests have ended. Raises UnknownModelError."""
        await self._catch_up(command["model_id"], None)
        await self._residents.stop(command["model_id"])

    async def check_health(self) -> None:
        """Serve's health check: raises when nobody looks after the engines; one that failed is no reason."""
        self._residents.check()
        self._hosted.check()

    async def close(self) -> None:
        """End every engine with its processes, and the feeds."""
        self._is_leaving = True
        if self._plan is not None:
            await self._plan.close()
        self._feeds.close()
        self._news.close()
        self._hosted.close()
        self._leases.close()
        await self._residents.close()
        if self._tracing is not None:
            await self._tracing.close()

    def __repr__(self) -> str:
        return f"<EngineReplica {self._residents!r}>"


class ServedEngineReplica(EngineReplica):
    """What Serve deploys: Serve calls ``__del__`` by hand when it shuts a replica down, and awaits it."""

    def __init__(  # noqa: PLR0913, PLR0917 - as ``EngineReplica``
        self,
        catalogue: Any,
        pool: str,
        storage: StoreConfig,
        limits: Limits,
        max_wait_s: float,
        forecaster: str | None = None,
        tracing: TraceConfig | None = None,
    ) -> None:
        """``forecaster`` names the actor whose plan is followed, within the application."""
        log_with("ray.serve")
        application = serve.get_replica_context().app_name
        node = NodeClient(application, storage)
        metrics = StartMetrics()
        replica_id = serve.get_replica_context().replica_id.unique_id
        super().__init__(
            catalogue,
            pool,
            lambda spec: _staged_engine(spec, node, metrics),
            _within_devices(limits, _gpus()),
            max_wait_s,
            replica_id,
            node.tier_of,
            AdapterFiles(
                storage.disk_dir, storage.s3_endpoint_url, AdapterDram(storage.adapters_in, storage.adapter_dram_bytes)
            ),
            _as_promised,
        )
        # Without GPUs, device time is the replica's.
        self._residents.watch = ResidencyMetrics(_gpus() or 1.0)
        self._residents.node = ray.get_runtime_context().get_node_id()
        if tracing is not None:
            self.trace(Tracing(tracing, "engines", replica_id))
        if forecaster is not None:
            self._residents.prewarms.tell = metrics.prewarmed
            self.follow(f"{forecaster}:{application}", pool, replica_id)
        self._rates = RatesTeller(
            lambda: snapshot_rates(self._residents.planned()), lambda rates: node.expect(replica_id, rates)
        )
        self._rates.run()
        self._preloader = AdapterPreloader(self._residents, self._leases)
        self._preloader.run()

    async def close(self) -> None:
        """See ``EngineReplica.close``."""
        self._rates.close()
        self._preloader.close()
        await super().close()

    async def __del__(self) -> None:
        await self.close()


def _arrival_of(request: GenerateRequest) -> Arrival | None:
    if request.get("prepares"):
        return "prepared"
    return "resumed" if request.get("delivered_token_ids") else None


def _gpus() -> float:
    """Return how many GPUs this replica has, or what share of one."""
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))


def _within_devices(limits: Limits, gpus: float) -> Limits:
    """Return limits that end at what this replica's GPUs have, if no others were configured."""
    if limits.is_limited or not gpus:
        return limits
    from deployments.device_memory import devices_bytes  # noqa: PLC0415 - imports vLLM

    return replace(limits, budget_bytes=devices_bytes(gpus))


def _as_promised(spec: ModelSpec) -> ModelSpec:
    """Return the model with what vLLM wants to be free on its GPUs."""
    if spec.device == "cpu":
        return spec
    from deployments.device_memory import promised_bytes  # noqa: PLC0415 - imports vLLM

    return replace(spec, awake_bytes=promised_bytes(spec))


def _staged_engine(spec: ModelSpec, node: NodeClient, metrics: StartMetrics) -> Engine:
    with without_collecting():
        from deployments.staged_engine import StagedEngine  # noqa: PLC0415 - imports vLLM, the heaviest there is
        from deployments.vllm_engine import VllmEngine  # noqa: PLC0415

    return StagedEngine(spec, node, VllmEngine, metrics)
