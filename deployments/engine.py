"""What an engine replica needs of an engine: one model, started, asked, checked and stopped."""

from collections.abc import AsyncIterator
from typing import Protocol

from deployments.types import Embedding, EmbedRequest, GenerateRequest, StartReport
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

        Raises:
            RequestRejectedError: the request is not valid for this model.
            EngineDiedError: the engine ended.
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

    def start_report(self) -> StartReport:
        """Return how the last start went."""
        ...

    async def stop(self) -> None:
        """End the engine and its processes; harmless when it is not running."""
        ...
