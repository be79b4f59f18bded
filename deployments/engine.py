"""What an engine replica needs of an engine: one model, started, asked, checked and stopped."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from deployments.adapters import AdapterPlaces
from deployments.types import AdapterRef, AdapterSpec, Embedding, EmbedRequest, GenerateRequest, StartReport
from deployments.wire import TokenDelta


class Engine(Protocol):
    """One running model. Implementations: ``vllm_engine.VllmEngine``, ``fake_engine.FakeEngine``."""

    async def start(self) -> None:
        """Return when the engine serves.

        Raises:
            EngineStartError: it could not be started; nothing of it keeps running.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[TokenDelta]:
        """Yield deltas until one has a ``finish_reason``; closing the iterator stops the generation.

        A request with ``delivered_token_ids`` is resumed: they count as its output, and only new tokens are yielded;
        none when they end it already.

        Raises:
            RequestRejectedError: the request is not valid for this model.
            ResumeUnsupportedError: this engine can't resume it exactly.
            EngineDiedError: the engine ended.
            EngineUnavailableError: it sleeps.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embedding:
        """Return the pooled output; cancelling stops the work. Raises as ``generate``."""
        ...

    def check(self) -> None:
        """Raise ``EngineDiedError`` when the engine is not running; must not block."""
        ...

    def supported_tasks(self) -> list[str]:
        """Return vLLM's task names: ``generate``, ``embed``, …."""
        ...

    def unfinished(self) -> int:
        """Return how many sequences and prompts the engine has in hand."""
        ...

    async def memory_bytes(self) -> int:
        """Return what its processes take of the device's memory now; 0 if they have ended, or it can't be told."""
        ...

    def start_report(self) -> StartReport:
        """Return how the last start went."""
        ...

    def keep_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """Take these for the model's adapters; what it has of others leaves its memory after the requests for them."""
        ...

    async def adapters(self) -> list[str]:
        """Return the names (``adapters.engine_name``) of the adapters that it has in memory now."""
        ...

    async def adapter_places(self) -> AdapterPlaces:
        """Return where its adapters are now. Raises EngineDiedError."""
        ...

    async def preload_adapter(self, adapter: AdapterRef) -> None:
        """Have an adapter in memory ahead of requests for it, and count it as used now.

        Raises:
            RequestRejectedError: the engine can't use it.
            EngineUnavailableError: it sleeps.
            EngineDiedError: the engine ended.
        """
        ...

    async def sleep(self) -> None:
        """Give back the memory of weights and KV cache, keep the processes; requests are refused until ``wake``.

        Nothing is aborted: who wants an engine to sleep waits until it has no request in hand. Harmless when it sleeps.

        Raises:
            EngineBusyError: it has requests in hand; it stays awake.
            SleepUnsupportedError: it can never sleep; it stays awake.
            EngineDiedError: the engine ended.
        """
        ...

    async def prepare_wake(self, snapshot: Path) -> None:
        """Asleep, begin what a wake from this snapshot would otherwise wait for; harmless where there is nothing.

        Raises:
            WakeError: the snapshot can't be used.
            EngineDiedError: the engine ended.
        """
        ...

    async def wake(self, snapshot: Path | None = None) -> None:
        """Take the weights from the model's snapshot and serve again; harmless when it is awake.

        Args:
            snapshot: the directory it is in; None for engines that know themselves.

        Raises:
            WakeError: the snapshot can't be used, or the engine answers otherwise than before. It still refuses
                requests; it may be woken from another snapshot, or be stopped.
            EngineDiedError: the engine ended.
        """
        ...

    async def stop(self) -> None:
        """End the engine and its processes; harmless when it is not running."""
        ...
