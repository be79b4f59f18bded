"""The adapters of a vLLM engine: the calls that load them and take them out, and where they are.

Covers: asking the engine. Does not cover: who uses which (``engine_adapters``), how a worker keeps them
(``packed_adapters``), requests (``vllm_engine``).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from deployments.adapters import AdapterPlaces, LoadTimes
from deployments.engine_adapters import EngineAdapter, EngineAdapters
from deployments.errors import EngineDiedError, RequestRejectedError
from deployments.types import AdapterRef, AdapterSpec, ModelSpec
from deployments.vllm_calls import answered
from storage.adapter_dram import AdapterDram

_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)


class VllmAdapters:
    """One engine's; one event loop."""

    def __init__(
        self, spec: ModelSpec, llm: Callable[[], AsyncLLM], turning: asyncio.Lock, is_asleep: Callable[[], bool]
    ) -> None:
        """``llm`` returns the engine, or raises EngineDiedError; under ``turning`` it doesn't fall asleep or wake."""
        self._spec = spec
        self._llm = llm
        self._turning = turning
        self._is_asleep = is_asleep
        self._loaded = EngineAdapters(self._load, self._unload, spec.id)
        self._dram = AdapterDram(Path(spec.adapters_in), spec.adapters_bytes) if spec.adapters_in else None
        self._load_times = LoadTimes()
        self._known_digests: frozenset[str] = frozenset()
        # Where adapters were, by digest, after so many events.
        self._in_slots: frozenset[str] = frozenset()
        self._in_host: frozenset[str] = frozenset()
        self._looked_at = 0
        # What is to leave it once it is awake.
        self._leaving: list[EngineAdapter] = []
        self.keep(spec.adapters)

    def keep(self, adapters: Sequence[AdapterSpec]) -> None:
        """See ``Engine.keep_adapters``."""
        self._known_digests = frozenset(adapter.digest for adapter in adapters)
        self._loaded.keep(adapters)

    def use(self, adapter: AdapterRef) -> AbstractAsyncContextManager[EngineAdapter]:
        """See ``EngineAdapters.use``. Raises RequestRejectedError, EngineDiedError."""
        return self._loaded.use(adapter)

    async def preload(self, adapter: AdapterRef) -> None:
        """See ``Engine.preload_adapter``; the engine is awake."""
        async with self._loaded.use(adapter) as found:
            # Again if that has just loaded it: vLLM may have let go one that was loaded before, and takes it for used.
            await self._add(found)

    async def names(self) -> list[str]:
        """See ``Engine.adapters``."""
        if not self._spec.lora_enabled:
            return []
        return self._loaded.names(await self._ask(lambda llm: llm.list_loras()))

    async def places(self) -> AdapterPlaces:
        """See ``Engine.adapter_places``; its worker is asked only if something may have changed."""
        if self._loaded.events != self._looked_at:
            events = self._loaded.events
            (slots, host), *_ = await self._ask(lambda llm: llm.collective_rpc("adapter_ids"))
            self._in_slots, self._in_host = self._loaded.digests(slots), self._loaded.digests(host)
            self._looked_at = events
        dram = await asyncio.to_thread(self._dram.digests) if self._dram is not None else set()
        times = self._load_times
        return AdapterPlaces(self._in_slots, self._in_host, self._known_digests & dram, times.dram_s, times.elsewhere_s)

    async def settled(self) -> None:
        """Return when nothing is being loaded or unloaded."""
        await self._loaded.settled()

    async def take_out_those_that_left(self) -> None:
        """Unload what was removed while the engine was asleep; it has just woken, and nobody asks it yet."""
        while self._leaving:
            await self._take_out(self._leaving.pop())

    async def _load(self, adapter: EngineAdapter) -> None:
        """Have it loaded before a batch needs it: there, what can't be loaded would end the engine.

        Raises:
            RequestRejectedError: the engine can't use it.
            EngineDiedError: the engine ended.
        """
        digest = Path(adapter.directory).name
        from_dram = self._dram is not None and await asyncio.to_thread(self._dram.holds, digest)
        begin_s = time.monotonic()
        await self._add(adapter)
        self._load_times.measured(time.monotonic() - begin_s, from_dram=from_dram)

    async def _add(self, adapter: EngineAdapter) -> None:
        try:
            await self._ask(lambda llm: llm.add_lora(lora_request(adapter)))
        except EngineDiedError:
            raise
        # What a worker raises arrives as a plain Exception that quotes it, paths and all.
        except Exception as error:
            logger.exception("adapter %s of %s can't be loaded", adapter.name, self._spec.id)
            await self._ask(lambda llm: llm.remove_lora(adapter.int_id))
            raise RequestRejectedError("The adapter does not fit the model.", "model") from error

    async def _unload(self, adapter: EngineAdapter) -> None:
        async with self._turning:
            if self._is_asleep():
                # It may lack what it keeps adapters in.
                self._leaving.append(adapter)
            else:
                await self._take_out(adapter)

    async def _take_out(self, adapter: EngineAdapter) -> None:
        await self._ask(lambda llm: llm.collective_rpc("unload_adapter", args=(adapter.int_id,)))
        logger.info("adapter %s has left the engine of %s", adapter.name, self._spec.id)

    async def _ask(self, call: Callable[[AsyncLLM], Coroutine[Any, Any, _Answer]]) -> _Answer:
        llm = self._llm()
        try:
            return await answered(llm, call(llm))
        except EngineDeadError as error:
            raise EngineDiedError(self._spec.id) from error

    def __repr__(self) -> str:
        return f"<VllmAdapters {self._loaded!r}>"


def lora_request(adapter: EngineAdapter) -> LoRARequest:
    """Return an adapter as vLLM is asked for it."""
    return LoRARequest(adapter.name, adapter.int_id, adapter.directory)
