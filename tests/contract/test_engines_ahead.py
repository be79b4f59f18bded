"""Engines forked ahead of their replicas: taken over, they are as others; not taken, nothing is left. Real vLLM."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deployments import engines_ahead
from deployments.engines_ahead import EnginesAhead
from deployments.errors import EngineDiedError
from deployments.forked_engine import PoolAddress
from deployments.staged_engine import StagedEngine
from deployments.start_metrics import StartMetrics
from deployments.types import GenerateRequest, ModelSpec
from deployments.vllm_engine import VllmEngine
from storage.lease import Lease, held_leases
from storage.store import StoreConfig
from tests.support.local_node import LocalNode
from tests.support.pools import engine_processes, until
from tests.support.service import CHAT_MODEL, MODELS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENGINE = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}
SPEC = ModelSpec(CHAT_MODEL, str(MODELS / CHAT_MODEL), ENGINE)
ROOM_BYTES = 2 << 30
TAKE_OVER = "take over the engine"


class Node(LocalNode):
    """Stands for a node's actor, too; its pool is real."""

    def __init__(self, pool: PoolAddress, directory: Path) -> None:
        super().__init__(StoreConfig(directory / "dram", ROOM_BYTES, directory / "disk", ROOM_BYTES))
        self.pool = pool
        self.outcomes: list[str] = []
        self.ahead = EnginesAhead(pool, self._held, lambda _, outcome: self.outcomes.append(outcome))
        self.lost_snapshots = False

    async def pool_address(self) -> PoolAddress:
        return self.pool

    async def _held(self, snapshot_id: str) -> tuple[Lease, Path]:
        lease, place = await self.hold("0" * 64 if self.lost_snapshots else snapshot_id, "ahead")
        return lease, Path(place.path)

    def engine(self, spec: ModelSpec = SPEC) -> StagedEngine:
        return StagedEngine(spec, self, VllmEngine, StartMetrics())  # type: ignore[arg-type]

    def owners(self) -> list[str]:
        return [lease.owner for lease in held_leases(self.config.disk_dir)]

    async def forked(self) -> int:
        """Have an engine ahead, and return its process once it serves."""
        assert self.ahead.fork(SPEC.id)
        return (await self.ahead._ahead[SPEC.id].starting).process_id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected() -> list[int]:
    """What the model answers; the first test to ask fills it."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(
    tmp_path_factory: pytest.TempPathFactory, expected: list[int], pool_address: PoolAddress
) -> AsyncIterator[Node]:
    """A node on which an engine of the model has run once, from its checkpoint."""
    made = Node(pool_address, tmp_path_factory.mktemp("tiers"))
    await made.store.recover()
    made.ahead.open()
    assert not made.ahead.fork(SPEC.id), "nobody has said how"
    engine = made.engine()
    await engine.start()
    expected += await answer(engine)
    await until(lambda: SPEC.id in made.ahead.known())
    await engine.stop()
    yield made
    await made.ahead.close()
    await until(lambda: engine_processes(pool_address) == [])


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_ahead(node: Node) -> None:
    await until(lambda: engine_processes(node.pool) == [] and node.owners() == [])
    node.outcomes.clear()
    node.ahead._rest_until_s.clear()


async def answer(engine: StagedEngine) -> list[int]:
    request: GenerateRequest = {
        "stream_id": "g",
        "model_id": CHAT_MODEL,
        "prompt_token_ids": [504, 3575, 282, 4649, 314],
        "sampling": {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True},
        "reply_to": {"host": "", "port": 0, "key": ""},
    }
    return [token async for delta in engine.generate(request) for token in delta.token_ids]


async def test_a_replica_takes_over_the_engine_that_is_there(node: Node, expected: list[int]) -> None:
    process_id = await node.forked()
    assert node.ahead.known() == {SPEC.id: True}
    assert await node.forked() == process_id, "one is enough"
    engine = node.engine()
    await engine.start()
    assert TAKE_OVER in engine.start_report()["stages_s"]
    assert process_id in [process.pid for process in engine_processes(node.pool)]
    assert len(engine_processes(node.pool)) == 3, "and no second one was forked"
    assert await answer(engine) == expected
    # It sleeps and wakes as one that was its own from the beginning.
    await engine.sleep()
    await engine.wake()
    assert await answer(engine) == expected
    # Nor has anything waited for a C++ compiler, as log probabilities make vLLM's sampling do.
    assert not list(node.config.disk_dir.rglob("*.so"))
    assert node.outcomes == ["claimed"]
    assert node.ahead.known() == {SPEC.id: False}
    await engine.stop()
    await until(lambda: engine_processes(node.pool) == [])


async def test_a_replica_that_comes_early_waits_for_the_engine(node: Node, expected: list[int]) -> None:
    node.ahead.fork(SPEC.id)
    engine = node.engine()
    await engine.start()
    assert TAKE_OVER in engine.start_report()["stages_s"]
    assert await answer(engine) == expected
    await engine.stop()


async def test_of_two_replicas_one_takes_it_and_the_other_starts_its_own(node: Node, expected: list[int]) -> None:
    await node.forked()
    engines = node.engine(), node.engine()
    await asyncio.gather(*(engine.start() for engine in engines))
    assert sorted(TAKE_OVER in engine.start_report()["stages_s"] for engine in engines) == [False, True]
    for engine in engines:
        assert await answer(engine) == expected
        await engine.stop()


async def test_another_version_of_the_model_does_not_take_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.forked()
    changed = node.engine(replace(SPEC, engine=ENGINE | {"max_model_len": 128}))
    await changed.start()
    assert TAKE_OVER not in changed.start_report()["stages_s"]
    await changed.stop()
    # Nor a replica that has other processors or devices; and how it starts is what is known now.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    elsewhere = node.engine()
    await elsewhere.start()
    assert TAKE_OVER not in elsewhere.start_report()["stages_s"]
    await elsewhere.stop()
    monkeypatch.undo()
    usual = node.engine()
    await usual.start()
    assert TAKE_OVER in usual.start_report()["stages_s"]
    await until(lambda: node.ahead._recipes[SPEC.id].surroundings.environment.get("CUDA_VISIBLE_DEVICES") is None)
    await usual.stop()


@pytest.mark.parametrize("how", ["time", "death", "close"])
async def test_one_that_nobody_takes_ends(node: Node, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "time":
        monkeypatch.setattr(engines_ahead, "KEEP_S", 5.0)
    launcher = await node.forked()
    if how == "death":
        next(process for process in engine_processes(node.pool) if process.ppid() == launcher).kill()
    if how == "close":
        await node.ahead.close()
        node.ahead.open()
    await until(lambda: node.outcomes == ["failed" if how == "death" else "unclaimed"])
    await until(lambda: engine_processes(node.pool) == [])


async def test_one_that_can_not_start_is_none(node: Node, expected: list[int]) -> None:
    node.lost_snapshots = True
    assert node.ahead.fork(SPEC.id)
    engine = node.engine()
    await engine.start()
    node.lost_snapshots = False
    assert await answer(engine) == expected
    assert node.outcomes == ["failed"]
    assert not node.ahead.fork(SPEC.id), "not again and again"
    await engine.stop()


async def test_a_taken_engine_that_dies_is_seen(node: Node) -> None:
    process_id = await node.forked()
    engine = node.engine()
    await engine.start()
    for process in engine_processes(node.pool):
        if process.pid == process_id:
            process.kill()
    await until(lambda: dies(engine))
    with pytest.raises(EngineDiedError) as died:
        await answer(engine)
    assert not died.value.had_begun, "its record of what it computed was taken over, too"
    await until(lambda: engine_processes(node.pool) == [])
    assert list(Path(node.pool.socket_path).parent.glob("batch-*")) == []
    await engine.stop()


def dies(engine: Any) -> bool:
    check: Callable[[], None] = engine.check
    try:
        check()
    except EngineDiedError:
        return True
    return False


async def test_a_replica_that_gives_up_while_it_waits_leaves_nothing(node: Node) -> None:
    node.ahead.fork(SPEC.id)
    engine = node.engine()
    starting = asyncio.ensure_future(engine.start())
    # It has claimed the engine, which is not there yet.
    await until(lambda: not node.ahead._ahead)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await until(lambda: engine_processes(node.pool) == [])
    await engine.stop()
