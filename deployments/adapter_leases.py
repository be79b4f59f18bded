"""The files of the adapters that a replica's requests are for: on this node while they are needed.

Covers: fetching each once however many ask, holding it as long as requests are in hand, removing what no list knows any
more. Does not cover: the copies themselves (``storage.adapter_files``), engines (``engine_adapters``).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from deployments.errors import EngineUnavailableError
from deployments.types import AdapterRef
from storage.adapter_files import AdapterFiles, AdapterInUse
from storage.errors import StorageError

logger = logging.getLogger(__name__)

# Requests for what was removed, or for the version before, may still wait in a gateway: as long as for a cold model.
KEEP_GONE_S = 150.0


class AdapterLeases:
    """One replica's; one event loop."""

    def __init__(self, files: AdapterFiles | None) -> None:
        """Without ``files`` adapters are used where they are."""
        self._files = files
        self._listed: frozenset[str] | None = None
        self._gone: set[str] = set()
        self._in_hand: Counter[str] = Counter()
        self._held: dict[str, asyncio.Task[AdapterInUse]] = {}
        self._removing: set[asyncio.Task[None]] = set()

    def keep(self, digests: frozenset[str]) -> None:
        """Take these for what there is; the files of others that were there go once nobody uses them."""
        if self._files is None or digests == self._listed:
            return
        if self._listed is None:
            self._begin(asyncio.to_thread(self._files.sweep, digests))
        else:
            self._gone = (self._gone | (self._listed - digests)) - digests
        self._listed = digests
        for digest in self._gone:
            self._remove(digest)

    @asynccontextmanager
    async def held(self, model_id: str, adapter: AdapterRef | None) -> AsyncIterator[AdapterRef | None]:
        """Give an adapter as the engine finds it on this node, for as long as a request needs it.

        Raises:
            EngineUnavailableError: its files can't be had.
        """
        if adapter is None or self._files is None:
            yield adapter
            return
        digest = adapter["digest"]
        self._in_hand[digest] += 1
        try:
            files = await self._here(self._files, model_id, adapter)
            yield {**adapter, "path": str(files.directory)}
        finally:
            self._in_hand[digest] -= 1
            if not self._in_hand[digest]:
                self._let_go(digest)

    def close(self) -> None:
        """Remove nothing more; what is left is swept away by who comes next."""
        for task in self._removing:
            task.cancel()

    async def _here(self, files: AdapterFiles, model_id: str, adapter: AdapterRef) -> AdapterInUse:
        digest = adapter["digest"]
        if digest not in self._held:
            using = asyncio.to_thread(files.use, digest, adapter["path"])
            self._held[digest] = asyncio.get_running_loop().create_task(using)
        held = self._held[digest]
        try:
            # Shielded: others may wait for it too.
            return await asyncio.shield(held)
        except StorageError as error:
            if self._held.get(digest) is held:
                del self._held[digest]
            # Where they come from is the operator's business.
            logger.warning("adapter %s of %s: %s", adapter["id"], model_id, error)
            raise EngineUnavailableError(model_id, "the files of the adapter can't be had") from error

    def _let_go(self, digest: str) -> None:
        held = self._held.pop(digest, None)
        if held is not None:
            held.add_done_callback(lambda done: self._close(digest, done))

    def _close(self, digest: str, held: asyncio.Task[AdapterInUse]) -> None:
        if not held.cancelled() and held.exception() is None:
            held.result().close()
        if digest in self._gone:
            self._remove(digest)

    def _remove(self, digest: str) -> None:
        if self._files is not None and not self._in_hand[digest]:
            self._begin(self._remove_late(self._files, digest))

    async def _remove_late(self, files: AdapterFiles, digest: str) -> None:
        await asyncio.sleep(KEEP_GONE_S)
        if digest in self._gone and not self._in_hand[digest]:
            # Where another replica uses them, that one removes them in the end.
            await asyncio.to_thread(files.remove, digest)

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        async def logged() -> None:
            try:
                await work
            except OSError:  # those of the copies; what is left is swept away later
                logger.exception("files of adapters could not be removed")

        task = asyncio.get_running_loop().create_task(logged())
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    def __repr__(self) -> str:
        return f"<AdapterLeases {len(self._held)} held>"
