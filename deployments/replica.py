"""The engine replica: a Serve deployment that owns engines and streams their tokens to gateways.

Covers: engines of several models side by side, one Serve call per generated sequence with its tokens on the feed,
health. Does not cover: which replica gets a request (Serve's router) and text (the gateway).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray import serve

from deployments.engine import Engine
from deployments.errors import EngineDiedError, FeedError, UnknownModelError
from deployments.feed import Feeds, GatewayFeed
from deployments.supervisor import EngineSupervisor
from deployments.types import (
    Embedding,
    EmbedRequest,
    EngineDescription,
    GenerateRequest,
    GenerateSummary,
    ModelSpec,
)
from storage.actor import StoreClient
from storage.store import StoreConfig


class EngineReplica:
    """Plain class; ``ServedEngineReplica`` is what Serve deploys. Every argument and result is a builtin type."""

    def __init__(self, models: list[ModelSpec], make_engine: Callable[[ModelSpec], Engine]) -> None:
        self._make_engine = make_engine
        self._feeds = Feeds()
        self._supervisors = {spec.id: self._supervise(spec) for spec in models}

    def _supervise(self, spec: ModelSpec) -> EngineSupervisor:
        supervisor = EngineSupervisor(spec.id, lambda: self._make_engine(spec))
        supervisor.run()
        return supervisor

    async def generate(self, request: GenerateRequest) -> GenerateSummary:
        """Generate one sequence; its deltas go to the gateway's feed, the summary comes back when it has ended.

        Cancelling the call stops the generation; so does the gateway's end.

        Raises:
            UnknownModelError, EngineUnavailableError, EngineDiedError, RequestRejectedError, FeedError.
        """
        engine = await self._supervisor(request["model_id"]).engine()
        feed = await self._feeds.open(request["reply_to"])
        work = asyncio.ensure_future(_stream(engine, request, feed))
        forget = feed.on_lost(work.cancel)
        try:
            with self._noticing_death(request["model_id"]):
                return await work
        except asyncio.CancelledError:
            if feed.lost:
                raise FeedError(feed.address, "the gateway went away") from None
            work.cancel()
            await asyncio.wait([work])
            raise
        finally:
            forget()

    async def embed(self, request: EmbedRequest) -> Embedding:
        """Pool one prompt. Raises as ``generate``, but for FeedError."""
        engine = await self._supervisor(request["model_id"]).engine()
        with self._noticing_death(request["model_id"]):
            return await engine.embed(request)

    async def describe(self) -> dict[str, EngineDescription]:
        """Return each model's engine with its state."""
        return {model_id: supervisor.describe() for model_id, supervisor in self._supervisors.items()}

    async def supported_tasks(self, model_id: str) -> list[str]:
        """Return the tasks of the model's engine, waiting until it serves.

        Raises:
            UnknownModelError, EngineUnavailableError.
        """
        return (await self._supervisor(model_id).engine()).supported_tasks()

    async def check_health(self) -> None:
        """Serve's health check: raises when an engine has failed beyond repair, so that the replica is replaced."""
        for supervisor in self._supervisors.values():
            supervisor.check()

    async def close(self) -> None:
        """End every engine with its processes, and the feeds."""
        self._feeds.close()
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors.values()))

    @contextmanager
    def _noticing_death(self, model_id: str) -> Iterator[None]:
        """Have the engine started again at once when a request finds it dead, not with the next look at it."""
        try:
            yield
        except EngineDiedError:
            self._supervisor(model_id).notice_death()
            raise

    def _supervisor(self, model_id: str) -> EngineSupervisor:
        supervisor = self._supervisors.get(model_id)
        if supervisor is None:
            raise UnknownModelError(model_id)
        return supervisor

    def __repr__(self) -> str:
        return f"<EngineReplica {list(self._supervisors.values())!r}>"


class ServedEngineReplica(EngineReplica):
    """What Serve deploys: Serve calls ``__del__`` by hand when it shuts a replica down, and awaits it."""

    def __init__(self, models: list[ModelSpec], storage: StoreConfig) -> None:
        store = StoreClient(serve.get_replica_context().app_name, storage)
        super().__init__(models, lambda spec: _staged_engine(spec, store))

    async def __del__(self) -> None:
        await self.close()


async def _stream(engine: Engine, request: GenerateRequest, feed: GatewayFeed) -> GenerateSummary:
    token_count = 0
    deltas = engine.generate(request)
    try:
        async for delta in deltas:
            token_count += len(delta.token_ids)
            feed.send(delta)
            await feed.drain()
            if delta.finish_reason is not None:
                return {"token_count": token_count, "finish_reason": delta.finish_reason}
    finally:
        # Here and not whenever the generator is collected: closing it is what stops the generation.
        await deltas.aclose()  # type: ignore[attr-defined]
    raise EngineDiedError(request["model_id"])


def _staged_engine(spec: ModelSpec, store: StoreClient) -> Engine:
    from deployments.staged_engine import StagedEngine  # noqa: PLC0415 - imports vLLM, the heaviest there is
    from deployments.vllm_engine import VllmEngine  # noqa: PLC0415

    return StagedEngine(spec, store, VllmEngine)
