"""The adapters inside one engine: loaded once however many ask, and gone again when nobody may ask for them any more.

Covers: who uses which, ids, the order of loads and unloads. Does not cover: the calls to the engine (``vllm_engine``),
files (``adapter_leases``). vLLM itself forgets the least recently used when it has too many, and loads them again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from deployments.adapter_metrics import adapter_metrics
from deployments.adapters import AdapterTable, engine_name, ref_of
from deployments.types import AdapterRef, AdapterSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineAdapter:
    """An adapter as an engine is asked for it; ``directory`` has its files."""

    name: str
    int_id: int
    directory: str


class EngineAdapters:
    """One engine's; one event loop."""

    def __init__(
        self,
        load: Callable[[EngineAdapter], Awaitable[None]],
        unload: Callable[[EngineAdapter], Awaitable[None]],
        model_id: str = "",
    ) -> None:
        """``load`` raises why an adapter can't be loaded; then nothing of it is left in the engine.

        ``model_id`` is what loads are counted for.
        """
        self._model_id = model_id
        self._load = load
        self._unload = unload
        self._table = AdapterTable()
        # Grows with whatever may change what is in the engine.
        self.events = 0
        self._known: set[str] = set()
        # What was known, and is to leave the engine.
        self._gone: set[str] = set()
        self._in_hand: Counter[str] = Counter()
        self._loaded: dict[str, EngineAdapter] = {}
        # By name: one load or unload at a time.
        self._working: dict[str, asyncio.Task[None]] = {}

    def keep(self, adapters: Iterable[AdapterSpec]) -> None:
        """Take these for what there is; others that were there leave the engine once nobody uses them."""
        now = {engine_name(ref_of(adapter)) for adapter in adapters}
        self._gone = (self._gone | (self._known - now)) - now
        self._known = now
        for name in self._gone & self._loaded.keys():
            self._let_go(name)

    @asynccontextmanager
    async def use(self, adapter: AdapterRef) -> AsyncIterator[EngineAdapter]:
        """Have an adapter in the engine for one request. Raises as ``load``."""
        found = EngineAdapter(engine_name(adapter), self._table.int_id(adapter), adapter["path"])
        self._in_hand[found.name] += 1
        self.events += 1
        try:
            while found.name not in self._loaded:
                working = self._working.get(found.name) or self._work(found.name, self._loading(found))
                # Shielded: others may wait for it too.
                await asyncio.shield(working)
            yield found
        finally:
            self._in_hand[found.name] -= 1
            self.events += 1
            if found.name in self._gone:
                self._let_go(found.name)

    def names(self, int_ids: Iterable[int]) -> list[str]:
        """Return the names of adapters by their ids."""
        names = self._table.names()
        return sorted(names[int_id] for int_id in int_ids if int_id in names)

    def digests(self, int_ids: Iterable[int]) -> frozenset[str]:
        """Return what is in adapters, by their ids."""
        return self._table.digests(int_ids)

    async def settled(self) -> None:
        """Return when nothing is being loaded or unloaded."""
        while self._working:
            await asyncio.wait(self._working.values())

    def _let_go(self, name: str) -> None:
        if not self._in_hand[name] and name not in self._working and (adapter := self._loaded.pop(name, None)):
            self._work(name, self._unloading(adapter))

    def _work(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._working[name] = task
        task.add_done_callback(lambda done: self._worked(name, done))
        return task

    def _worked(self, name: str, done: asyncio.Task[None]) -> None:
        del self._working[name]
        self.events += 1
        if not done.cancelled():
            done.exception()  # who waited for it knows
        if name in self._gone:
            self._let_go(name)

    async def _loading(self, adapter: EngineAdapter) -> None:
        begin_s = time.monotonic()
        await self._load(adapter)
        self._loaded[adapter.name] = adapter
        adapter_metrics().loaded(self._model_id, time.monotonic() - begin_s, len(self._loaded))

    async def _unloading(self, adapter: EngineAdapter) -> None:
        try:
            await self._unload(adapter)
            adapter_metrics().unloaded(self._model_id, len(self._loaded))
        except Exception:
            # With the engine it is gone too; and nobody waits for this.
            logger.exception("adapter %s could not be unloaded", adapter.name)

    def __repr__(self) -> str:
        return f"<EngineAdapters {len(self._loaded)} loaded, {sum(self._in_hand.values())} requests>"
