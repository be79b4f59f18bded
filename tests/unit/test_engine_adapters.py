"""An engine's adapters: loaded once, unloaded when nobody may ask for them any more, one thing at a time."""

import asyncio
from dataclasses import replace

import pytest

from deployments.adapters import engine_name, ref_of
from deployments.engine_adapters import EngineAdapter, EngineAdapters
from deployments.errors import RequestRejectedError
from deployments.types import AdapterSpec

OLD = AdapterSpec("a", "/there", "0" * 64)
NEW = replace(OLD, digest="1" * 64)
OTHER = replace(OLD, owner="acme")


class Engine:
    """What is asked of an engine, which takes as long as it is let."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.inside: set[int] = set()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.refuses = False
        self.adapters = EngineAdapters(self._load, self._unload)

    async def _load(self, adapter: EngineAdapter) -> None:
        self.did.append(f"load {adapter.name}")
        await self.may_go_on.wait()
        if self.refuses:
            raise RequestRejectedError("no")
        self.inside.add(adapter.int_id)

    async def _unload(self, adapter: EngineAdapter) -> None:
        self.did.append(f"unload {adapter.name}")
        await self.may_go_on.wait()
        self.inside.remove(adapter.int_id)

    async def use(self, spec: AdapterSpec, until: asyncio.Event | None = None) -> int:
        async with self.adapters.use(ref_of(spec)) as found:
            assert found.int_id in self.inside
            if until is not None:
                await until.wait()
            assert found.int_id in self.inside, "it stays while it is used"
            return found.int_id

    def names(self) -> list[str]:
        return self.adapters.names(self.inside)


def name(spec: AdapterSpec) -> str:
    return engine_name(ref_of(spec))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_however_many_ask_it_is_loaded_once() -> None:
    engine = Engine()
    ids = await asyncio.gather(*(engine.use(OLD) for _ in range(50)))
    assert len(set(ids)) == 1
    assert engine.did == [f"load {name(OLD)}"]


async def test_versions_and_owners_are_apart() -> None:
    engine = Engine()
    ids = [await engine.use(spec) for spec in (OLD, NEW, OTHER)]
    assert len(set(ids)) == 3
    assert engine.names() == sorted(map(name, (OLD, NEW, OTHER)))


async def test_what_is_gone_leaves_after_its_last_request() -> None:
    engine, end = Engine(), asyncio.Event()
    engine.adapters.keep([OLD])
    running = [asyncio.ensure_future(engine.use(OLD, end)) for _ in range(2)]
    await turn()
    engine.adapters.keep([NEW])
    await engine.use(NEW)
    await engine.adapters.settled()
    assert engine.names() == sorted([name(OLD), name(NEW)])
    end.set()
    await asyncio.gather(*running)
    await engine.adapters.settled()
    assert engine.names() == [name(NEW)]
    # A request that is late, from a gateway that has not heard.
    await engine.use(OLD)
    await engine.adapters.settled()
    assert engine.names() == [name(NEW)]


async def test_what_comes_back_while_it_leaves_is_loaded_again() -> None:
    engine = Engine()
    engine.adapters.keep([OLD])
    await engine.use(OLD)
    engine.may_go_on.clear()
    engine.adapters.keep([])
    await turn()
    engine.adapters.keep([OLD])
    using = asyncio.ensure_future(engine.use(OLD))
    await turn()
    assert engine.did == [f"load {name(OLD)}", f"unload {name(OLD)}"]
    engine.may_go_on.set()
    await using
    assert engine.did[2:] == [f"load {name(OLD)}"]
    assert engine.names() == [name(OLD)]


async def test_one_that_cannot_be_loaded_fails_for_all_who_wait_and_is_tried_again() -> None:
    engine = Engine()
    engine.refuses = True
    engine.may_go_on.clear()
    using = [asyncio.ensure_future(engine.use(OLD)) for _ in range(3)]
    await turn()
    engine.may_go_on.set()
    for each in using:
        with pytest.raises(RequestRejectedError):
            await each
    engine.refuses = False
    await engine.use(OLD)
    assert len(engine.did) == 2


async def test_who_leaves_while_it_is_loaded_leaves_nothing_that_is_gone() -> None:
    engine = Engine()
    engine.adapters.keep([OLD])
    engine.may_go_on.clear()
    using = asyncio.ensure_future(engine.use(OLD))
    await turn()
    using.cancel()
    await asyncio.wait([using])
    engine.adapters.keep([])
    engine.may_go_on.set()
    await engine.adapters.settled()
    assert engine.names() == []
    assert repr(engine.adapters) == "<EngineAdapters 0 loaded, 0 requests>"
