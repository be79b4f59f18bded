"""A whole gateway in this process, over real sockets: vLLM's own OpenAI classes, and engines that need no model.

Serve's part is played by tasks; what crosses processes there is given over as it is.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import uvicorn

from app.catalogue import Catalogue
from app.config import parse_config
from app.entry import Entry
from app.served_gateway import GuardedGateway
from deployments.engine import Engine
from deployments.fake_engine import FakeEngine
from deployments.replica import EngineReplica
from deployments.residency import Limits
from deployments.tracing import TraceConfig, Tracing
from deployments.types import AdapterSpec, ModelSpec
from storage.adapter_files import AdapterFiles
from storage.adapter_source import digest_of
from storage.store import StoreConfig
from tests.support.handles import LocalHandle
from tests.support.service import ADAPTERS, CHAT_MODEL, EMBEDDING_MODEL, MODELS


class _Method:
    def __init__(self, call: Any) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(self._call(*arguments))


class TaskHandle:
    """Stands for a Serve handle whose calls can be cancelled; remembers what was asked.

    As Serve's it has one line for all who ask for sequences, when the replica has as many as it takes.
    """

    deployment_id = "in this process"

    def __init__(self, target: Any, takes: int) -> None:
        self.target = target
        self.asked: list[Any] = []
        self._places = asyncio.Semaphore(takes)

    def __getattr__(self, name: str) -> _Method:
        async def call(*arguments: Any) -> Any:
            self.asked += arguments
            async with self._places if name == "generate" else contextlib.nullcontext():
                return await getattr(self.target, name)(*arguments)

        return _Method(call)


class OneNode:
    """Stands for the deployment ``Nodes``."""

    async def tiers(self) -> dict[str, Any]:
        """See ``NodeKeeper.tiers``."""
        tier = {"capacity_bytes": 4_000_000_000, "used_bytes": 270_000_000, "snapshots": [SNAPSHOT]}
        return {"0123456789abcdef": {"dram": tier, "disk": tier}}


SNAPSHOT = {
    "id": "a" * 64, "name": "shared-model", "size_bytes": 270_000_000, "whole": True, "leases": ["somebody"],
    "pinned": True, "uses": 3, "last_used_s": None,
}  # fmt: skip


class PacedEngine(FakeEngine):
    """Takes its time for each token, and waits until it may go on."""

    may_go_on = asyncio.Event()
    pause_s = 0.0

    async def generate(self, request: Any) -> Any:
        """See ``Engine.generate``."""
        async for delta in super().generate(request):
            await asyncio.sleep(self.pause_s)
            await self.may_go_on.wait()
            yield delta


class InProcess:
    """The gateway, its replica, and a client for it."""

    def __init__(
        self,
        gateway: GuardedGateway,
        pool: TaskHandle,
        port: int,
        client: httpx.AsyncClient,
        make_gateway: Callable[[], GuardedGateway],
    ) -> None:
        self.gateway = gateway
        self.pool = pool
        self.port = port
        self.client = client
        self._make_gateway = make_gateway

    @asynccontextmanager
    async def beside(self) -> AsyncIterator["InProcess"]:
        """Another gateway of the same application."""
        async with _served(self._make_gateway, self.pool) as other:
            yield other

    def asked(self, model: str) -> list[dict[str, Any]]:
        """What was asked of the replica about a model."""
        return [ask for ask in self.pool.asked if isinstance(ask, dict) and ask.get("model_id") == model]


def embedding_model(model_id: str) -> ModelSpec:
    return ModelSpec(model_id, str(MODELS / EMBEDDING_MODEL), {"runner": "pooling", "dtype": "float32"})


def model(model_id: str, *adapters: str, lora: bool = False) -> ModelSpec:
    return ModelSpec(
        model_id,
        str(MODELS / CHAT_MODEL),
        {"dtype": "float32", "max_model_len": 1024},
        lora_enabled=lora or bool(adapters),
        adapters=tuple(AdapterSpec(name, str(ADAPTERS / name), demo_digest(name)) for name in adapters),
    )


@cache
def demo_digest(adapter: str) -> str:
    return digest_of(ADAPTERS / adapter)


@asynccontextmanager
async def gateway_of(  # noqa: PLR0913 - what a gateway is made of
    directory: Path,
    *specs: ModelSpec,
    keys_file: Path | None,
    takes: int = 256,
    token_time_s: float = 0.0,
    lora_source: str = "",
    s3_endpoint_url: str | None = None,
    traces: TraceConfig | None = None,
    own_engines: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    make_engine: Callable[[ModelSpec], Engine] = PacedEngine,
    budget_bytes: int = 10_000,
) -> AsyncIterator[InProcess]:
    """``takes`` is how many sequences its replica takes at once, ``lora_source`` where adapters are looked for."""
    PacedEngine.pause_s = token_time_s
    models = [{"id": spec.id, "source": spec.path} for spec in specs]
    config = parse_config({"models": models, "pools": [{"max_ongoing_requests": takes}]})
    entries = [Entry(spec, {}, "default", {}, lora_source, own_engines=own_engines.get(spec.id, ())) for spec in specs]
    catalogue = LocalHandle(Catalogue(entries, directory))
    PacedEngine.may_go_on = asyncio.Event()
    PacedEngine.may_go_on.set()
    files = AdapterFiles(directory / "disk", s3_endpoint_url)
    replica = EngineReplica(catalogue, "default", make_engine, Limits(budget_bytes, 0.05, 1.0), 10, files=files)
    pool = TaskHandle(replica, takes)
    storage = StoreConfig(directory / "dram", 0, directory / "disk", 0, s3_endpoint_url)
    tracing = None
    if traces is not None:
        tracing = Tracing(traces, "gateway")
        replica.trace(Tracing(traces, "engines"))
    nodes = LocalHandle(OneNode())

    def make_gateway() -> GuardedGateway:
        return GuardedGateway(
            config, catalogue, {"default": pool}, nodes, storage, keys_file=keys_file, tracing=tracing
        )

    try:
        async with _served(make_gateway, pool) as running:
            yield running
    finally:
        await replica.close()


@asynccontextmanager
async def _served(make_gateway: Callable[[], GuardedGateway], pool: TaskHandle) -> AsyncIterator[InProcess]:
    gateway = make_gateway()
    app = gateway.__serve_build_asgi_app__()
    # Longer than the client keeps a connection: who shares a loop with him may be late to hear that it was closed.
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, timeout_keep_alive=600))
    serving = asyncio.ensure_future(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - it announces nothing
            await asyncio.sleep(0.001)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield InProcess(gateway, pool, port, client, make_gateway)
    finally:
        server.should_exit = True
        PacedEngine.may_go_on.set()
        await serving
        await gateway.close()
