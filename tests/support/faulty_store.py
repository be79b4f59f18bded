"""A store as an actor of Ray that fails its peers at a read that is told beforehand."""

import asyncio
import os
import signal
from typing import Literal

from storage.actor import StoreActor
from storage.store import StoreConfig

Fault = Literal["dies", "hangs", "lies"]


class FaultyStore(StoreActor):
    """``fault`` comes with the read ``at``, counted from 0; a liar lies from then on."""

    def __init__(self, config: StoreConfig, fault: Fault | None = None, at: int = 0) -> None:
        self._fault = fault
        self._left = at
        super().__init__(config)

    async def peer_read(self, snapshot_id: str, chunk: int, start: int, end: int) -> bytes:
        self._left -= 1
        if self._fault is None or self._left >= 0:
            return await super().peer_read(snapshot_id, chunk, start, end)
        if self._fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "hangs":
            await asyncio.Event().wait()
        return bytes(end - start)
