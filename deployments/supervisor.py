"""Keeps one engine serving: starts it, notices its death, starts it again, gives up after a few tries.

Covers: the engine's state and the reason behind it, waiting for it to serve, repair. Does not cover: the requests
themselves (``replica``) and what an engine is (``engine``).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from deployments.engine import Engine
from deployments.errors import EngineDiedError, EngineStartError, EngineUnavailableError
from deployments.types import EngineDescription, EngineState

CHECK_PERIOD_S = 0.5
MAX_STARTS = 3
# Deaths further apart than this are not one failure that keeps coming back.
FORGIVE_AFTER_S = 600.0

logger = logging.getLogger(__name__)


class EngineSupervisor:
    """Owns the engine of one model from start to stop; one event loop."""

    def __init__(self, model_id: str, make_engine: Callable[[], Engine]) -> None:
        self.model_id = model_id
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._state: EngineState = "starting"
        self._reason: str | None = None
        self._started_in_s: float | None = None
        self._restarts = 0
        self._settled = asyncio.Event()  # awake, failed or stopped: nothing to wait for
        self._died = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin to start and watch the engine in the background."""
        self._task = asyncio.get_running_loop().create_task(self._supervise())

    async def engine(self) -> Engine:
        """Return the engine once it serves, waiting while it starts.

        Raises:
            EngineUnavailableError: it failed for good, or the replica is stopping.
        """
        await self._settled.wait()
        if self._state != "awake" or self._engine is None:
            raise EngineUnavailableError(self.model_id, self._reason or f"its engine is {self._state}")
        return self._engine

    def describe(self) -> EngineDescription:
        """Return the state for status pages and gateways."""
        return {
            "state": self._state,
            "reason": self._reason,
            "supported_tasks": self._engine.supported_tasks() if self._engine and self._state == "awake" else [],
            "started_in_s": self._started_in_s,
            "restarts": self._restarts,
            "requests": self._engine.unfinished() if self._engine else 0,
            "start": self._engine.start_report() if self._engine else {"weights_from": "", "stages_s": {}},
        }

    def check(self) -> None:
        """Raise ``EngineUnavailableError`` when the engine failed and can't be repaired here."""
        if self._state == "failed":
            raise EngineUnavailableError(self.model_id, self._reason or "its engine failed")

    def notice_death(self) -> bool:
        """Look whether the engine has died; if so, it is no longer handed out and is being started again."""
        try:
            if self._engine is not None and self._state == "awake":
                self._engine.check()
        except EngineDiedError:
            self._set("starting", "its engine died")
            self._died.set()
        return self._died.is_set()

    async def stop(self) -> None:
        """End the engine; later calls of ``engine`` raise."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._set("stopped", "the replica is stopping")
        if self._engine is not None:
            await self._engine.stop()

    async def _supervise(self) -> None:
        failed_starts = 0
        while failed_starts < MAX_STARTS:
            started_s = time.monotonic()
            engine = await self._start()
            if engine is None:
                failed_starts += 1
                continue
            await self._until_dead(engine)
            self._restarts += 1
            long_lived = time.monotonic() - started_s > FORGIVE_AFTER_S
            failed_starts = 0 if long_lived else failed_starts + 1
        self._set("failed", self._reason)

    async def _start(self) -> Engine | None:
        self._set("starting", self._reason)
        self._engine = engine = self._make_engine()
        begin_s = time.monotonic()
        try:
            await engine.start()
        except EngineStartError as error:
            logger.exception("engine of %s failed to start", self.model_id)
            self._reason = error.reason
            return None
        self._started_in_s = time.monotonic() - begin_s
        logger.info("engine of %s awake after %.1f s", self.model_id, self._started_in_s)
        self._died.clear()
        self._set("awake", None)
        return engine

    async def _until_dead(self, engine: Engine) -> None:
        while not self.notice_death():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_PERIOD_S):
                    await self._died.wait()
        logger.error("engine of %s died, starting it again", self.model_id)
        await engine.stop()

    def _set(self, state: EngineState, reason: str | None) -> None:
        self._state, self._reason = state, reason
        if state == "starting":
            self._settled.clear()
        else:
            self._settled.set()

    def __repr__(self) -> str:
        return f"<EngineSupervisor {self.model_id} {self._state}, {self._restarts} restarts>"
