"""An engine without a model, for tests and for measuring everything around engines.

It answers token ``i`` with ``prompt[i % len(prompt)]``, passes the same contract suite as the real one, and can be
told to die.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from deployments.adapters import AdapterPlaces
from deployments.engine_adapters import EngineAdapter, EngineAdapters
from deployments.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    EngineUnavailableError,
    RequestRejectedError,
    WakeError,
)
from deployments.types import (
    NOT_STARTED,
    AdapterRef,
    AdapterSpec,
    Embedding,
    EmbedRequest,
    GenerateRequest,
    ModelSpec,
    StartReport,
)
from deployments.wire import TokenDelta

AWAKE_BYTES, ASLEEP_BYTES = 100, 10


class FakeEngine:
    """Engine arguments it knows: ``token_time_s``, ``sleep_time_s``, ``wake_time_s``, ``fail_starts`` (a count)."""

    failed_starts: dict[str, int] = {}  # noqa: RUF012 - counts across instances, as a supervisor makes new ones

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._token_time_s = float(spec.engine.get("token_time_s", 0.0))
        self._sleep_time_s = float(spec.engine.get("sleep_time_s", 0.0))
        self._wake_time_s = float(spec.engine.get("wake_time_s", 0.0))
        self._alive = False
        self._asleep = False
        self.running: set[str] = set()
        self.loaded = EngineAdapters(self._load, self._unload)
        self.loaded.keep(spec.adapters)
        self._in_memory: set[int] = set()

    async def start(self) -> None:
        """See ``Engine.start``."""
        failed = self.failed_starts.get(self._spec.id, 0)
        if failed < int(self._spec.engine.get("fail_starts", 0)):
            self.failed_starts[self._spec.id] = failed + 1
            raise EngineStartError(self._spec.id, "told to fail")
        self._alive = True

    async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
        """See ``Engine.generate``."""
        self._check_awake()
        prompt, stream_id = request["prompt_token_ids"], request["stream_id"]
        if not prompt:
            raise RequestRejectedError("The prompt is empty.", "prompt")
        max_tokens = int(request["sampling"].get("max_tokens") or 16)
        delivered = len(request.get("delivered_token_ids") or ())
        if delivered >= max_tokens:
            yield TokenDelta(stream_id, [], "length")
        self.running.add(stream_id)
        try:
            async with self._using(request.get("adapter")):
                for index in range(delivered, max_tokens):
                    await asyncio.sleep(self._token_time_s)
                    self.check()
                    finish_reason = "length" if index == max_tokens - 1 else None
                    cached_tokens = 0 if index == 0 else None
                    queued_s = 0.0 if index == delivered and request.get("traceparent") else None
                    token_ids = [prompt[index % len(prompt)]]
                    yield TokenDelta(
                        stream_id, token_ids, finish_reason, cached_tokens=cached_tokens, queued_s=queued_s
                    )
        finally:
            self.running.discard(stream_id)

    async def embed(self, request: EmbedRequest) -> Embedding:
        """See ``Engine.embed``: the mean of the prompt's token ids, as one number."""
        self._check_awake()
        prompt = request["prompt_token_ids"]
        if not prompt:
            raise RequestRejectedError("The prompt is empty.", "input")
        return {"data": struct.pack("<f", sum(prompt) / len(prompt)), "shape": [1], "cached_tokens": 0}

    def check(self) -> None:
        """See ``Engine.check``."""
        if not self._alive:
            raise EngineDiedError(self._spec.id)

    def die(self) -> None:
        """End as a crashed engine does."""
        self._alive = False

    def supported_tasks(self) -> list[str]:
        """See ``Engine.supported_tasks``."""
        return ["generate", "embed"]

    def unfinished(self) -> int:
        """See ``Engine.unfinished``."""
        return len(self.running)

    def keep_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """See ``Engine.keep_adapters``."""
        self.loaded.keep(adapters)

    async def adapters(self) -> list[str]:
        """See ``Engine.adapters``."""
        return self.loaded.names(self._in_memory)

    async def adapter_places(self) -> AdapterPlaces:
        """See ``Engine.adapter_places``."""
        return AdapterPlaces(host=self.loaded.digests(self._in_memory))

    async def preload_adapter(self, adapter: AdapterRef) -> None:
        """See ``Engine.preload_adapter``."""
        self._check_awake()
        async with self._using(adapter):
            pass

    def _using(self, adapter: AdapterRef | None) -> AbstractAsyncContextManager[object]:
        return nullcontext() if adapter is None else self.loaded.use(adapter)

    async def _load(self, adapter: EngineAdapter) -> None:
        self._in_memory.add(adapter.int_id)

    async def _unload(self, adapter: EngineAdapter) -> None:
        self._in_memory.discard(adapter.int_id)

    async def memory_bytes(self) -> int:
        """See ``Engine.memory_bytes``."""
        return ASLEEP_BYTES if self._asleep else AWAKE_BYTES

    def start_report(self) -> StartReport:
        """See ``Engine.start_report``."""
        return {**NOT_STARTED, "weights_from": "nowhere", "found_in": "nowhere"}

    async def sleep(self) -> None:
        """See ``Engine.sleep``."""
        self.check()
        if self.running:
            raise EngineBusyError(self._spec.id)
        if not self._asleep:
            self._asleep = True
            await asyncio.sleep(self._sleep_time_s)

    async def prepare_wake(self, snapshot: Path) -> None:
        """See ``Engine.prepare_wake``: there is nothing to prepare."""

    async def wake(self, snapshot: Path | None = None) -> None:
        """See ``Engine.wake``: of a snapshot it only wants to know that there is one."""
        self.check()
        if not self._asleep:
            return
        await asyncio.sleep(self._wake_time_s)
        if snapshot is not None and not await asyncio.to_thread(snapshot.is_dir):
            raise WakeError(self._spec.id, f"there is no snapshot at {snapshot}")
        self._asleep = False

    def _check_awake(self) -> None:
        self.check()
        if self._asleep:
            raise EngineUnavailableError(self._spec.id, "its engine is asleep")

    async def stop(self) -> None:
        """See ``Engine.stop``."""
        self._alive = False
