"""The gateway's client over fake engines: a Serve handle's place is taken by replicas of this process.

Real sockets and real vLLM on the gateway's side. The engines need no model, so each fault can be placed.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from ray.exceptions import ActorDiedError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from app.catalogue import Catalogue
from app.engine_client import RemoteEngineClient
from app.entry import Entry
from app.model_pool import ModelPool
from app.resumption import RetryLimits
from app.streams import TokenStreams
from deployments.engine_args import engine_config
from deployments.fake_engine import FakeEngine
from deployments.placements import Placements
from deployments.replica import EngineReplica
from deployments.residency import Limits
from deployments.types import ModelSpec
from tests.support.handles import LocalHandle
from tests.support.service import CHAT_MODEL, MODELS

LIMITS = RetryLimits(patience_s=5.0, first_wait_s=0.001, longest_wait_s=0.01)
CONFIG_SPEC = ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), {"dtype": "float32", "max_model_len": 1024})
WORDS = "one two three four five six seven eight nine ten eleven twelve"
COUNT = 60


class Call:
    """What Serve's handle gives for a call: to be awaited, and to be cancelled."""

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self.task = task
        self._outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        task.add_done_callback(self._done)

    def __await__(self) -> Any:
        return self._outcome.__await__()

    def cancel(self) -> None:
        self.task.cancel()

    def lose(self, error: Exception) -> None:
        self._outcome.set_exception(error)

    def go_unheard(self) -> None:
        """However it ends, nobody is told."""
        self.task.remove_done_callback(self._done)
        self.task.cancel()

    def _done(self, task: "asyncio.Task[Any]") -> None:
        if self._outcome.done():
            return
        if task.cancelled():
            self._outcome.cancel()
        elif error := task.exception():
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())


class Pool:
    """Stands for a Serve handle: replicas of this process, one after the other as they end."""

    def __init__(self, directory: Path, others: tuple[ModelSpec, ...] = (), budget_bytes: int = 10_000) -> None:
        """``others`` are models that each replica hosts beside the one that is asked for."""
        self._directory = directory
        self._others = others
        self._budget_bytes = budget_bytes
        self.engines: list[FakeEngine] = []
        # Those that have ended are kept: their numbers are their ids.
        self.replicas: list[EngineReplica] = []
        self.leaving: set[int] = set()
        self.calls: list[Call] = []
        self.asked: list[Any] = []
        self.placements = Placements()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.kind: type[FakeEngine] = FakeEngine
        self.spec = ModelSpec(CHAT_MODEL, "", {"token_time_s": 0.001})
        self.begin()

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()

    def begin(self) -> None:
        limits = Limits(self._budget_bytes, min_residency_s=0.05, max_starvation_s=1.0)
        entries = [Entry(spec, {}, "pool", {}) for spec in (self.spec, *self._others)]
        catalogue = LocalHandle(Catalogue(entries, self._directory))
        self.replicas.append(EngineReplica(catalogue, "pool", self._make, limits, 5.0))
        self._tell()

    def leave(self, index: int) -> None:
        """Give a replica no more requests; what it has goes on."""
        self.leaving.add(index)
        self._tell()

    def _tell(self) -> None:
        ids = [str(index) for index in range(len(self.replicas)) if index not in self.leaving]
        self.placements.replicas("pool", ids)

    def __getattr__(self, method: str) -> Any:
        return type("Method", (), {"remote": lambda _, ask: self._call(method, ask)})()

    def _call(self, method: str, ask: Any) -> Call:
        # As it would cross processes.
        ask = msgspec.msgpack.decode(msgspec.msgpack.encode(ask))
        self.asked.append(ask)
        index = self._choose(ask.get("place") or {})
        self.placements.placed(ask.get("stream_id", ""), str(index))
        call = Call(asyncio.get_running_loop().create_task(getattr(self.replicas[index], method)(ask)))
        self.calls.append(call)
        return call

    def _choose(self, place: dict[str, str]) -> int:
        """As Serve's router with ours; without a wish the newest."""
        there = [index for index in range(len(self.replicas)) if index not in self.leaving]
        wanted = [index for index in there if str(index) == place.get("replica_id")]
        others = [index for index in there if str(index) != place.get("avoid_id")]
        return (wanted or others or there)[-1]

    def _make(self, spec: ModelSpec) -> FakeEngine:
        engine = self.kind(spec)
        start = engine.start

        async def start_when_it_may() -> None:
            await self.may_start.wait()
            await start()

        engine.start = start_when_it_may  # type: ignore[method-assign]
        self.engines.append(engine)
        return engine

    async def replace_engines(self, kind: type[FakeEngine]) -> None:
        """Have engines of another kind from now on."""
        self.kind = kind
        await self.kill_replica()
        self.engines.clear()

    async def asked_times(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.asked) < count:  # noqa: ASYNC110 - handles announce nothing
                await asyncio.sleep(0.001)

    async def kill_replica(self) -> None:
        """As a replica's process ends: nothing is said, calls fail, sockets close."""
        for call in self.calls:
            if not call.task.done():
                call.lose(ActorDiedError())
                call.task.cancel()
        await self.replicas[-1].close()
        self.leaving.add(len(self.replicas) - 1)
        self.begin()

    def cut_off(self) -> None:
        """As nothing reaches a replica any more: no call ends, until the gateway notices that it is silent."""
        for call in self.calls:
            if not call.task.done():
                call.go_unheard()
        number = len(self.replicas) - 1
        self.begin()
        self.placements.silent(str(number))


@asynccontextmanager
async def client_of(pool: Pool) -> AsyncIterator[RemoteEngineClient]:
    streams = TokenStreams()
    await streams.listen("127.0.0.1")
    config = await asyncio.to_thread(engine_config, CONFIG_SPEC)
    made = RemoteEngineClient(
        pool.spec, own={}, config=config, supported_tasks=["generate", "embed"],
        streams=streams, pool=ModelPool(pool, LIMITS, pool.placements),
    )  # fmt: skip
    try:
        yield made
        assert made._carriers == {}
        assert made._carrying == {}
    finally:
        made.shutdown()
        streams.close()


class Reading:
    """A client's request, read step by step."""

    def __init__(self, client: RemoteEngineClient, **sampling: Any) -> None:
        prompt = {"type": "token", "prompt_token_ids": client.renderer.get_tokenizer().encode(WORDS)}
        params = SamplingParams(**{"max_tokens": COUNT, "output_kind": RequestOutputKind.DELTA} | sampling)
        self.prompt = prompt["prompt_token_ids"]
        self.token_ids: dict[int, list[int]] = {}
        self.text: dict[int, str] = {}
        self.finish_reasons: dict[int, str | None] = {}
        self.last: RequestOutput | None = None
        self._outputs = client.generate(prompt, params, "request")

    async def read(self, at_least: int | None = None) -> "Reading":
        """Until every choice has so many tokens, or to the end."""
        while at_least is None or not self.token_ids or min(map(len, self.token_ids.values())) < at_least:
            try:
                self.last = await anext(self._outputs)
            except StopAsyncIteration:
                break
            for choice in self.last.outputs:
                self.token_ids.setdefault(choice.index, []).extend(choice.token_ids)
                self.text[choice.index] = self.text.get(choice.index, "") + choice.text
                self.finish_reasons[choice.index] = choice.finish_reason
        return self

    def whole(self, count: int = COUNT) -> list[int]:
        return [self.prompt[index % len(self.prompt)] for index in range(count)]

    async def close(self) -> None:
        await self._outputs.aclose()
