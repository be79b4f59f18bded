"""One engine's life: cold, starting, awake, sleeping, asleep, waking, failed; every change with its reason.

Covers: carrying out what is decided about an engine (start, sleep, wake, stop), noticing its death, counting failures.
An operation changes the state when it is called, before it is awaited, so that nothing is decided twice.
Does not cover: deciding (``residency``), requests (``residents``), what an engine is (``engine``).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, get_args

from deployments.adapters import AdapterPlaces
from deployments.engine import Engine
from deployments.errors import EngineBusyError, EngineDiedError, EngineStartError, SleepUnsupportedError, WakeError
from deployments.start_times import StartTimes, one_after_the_other
from deployments.types import (
    NOT_STARTED,
    AdapterRef,
    AdapterSpec,
    EngineDescription,
    EngineState,
    StartEvent,
    StartReport,
)

# Failed starts, or early deaths, until a model is given up for a while.
MAX_FAILURES = 3
# An engine that lived longer than this, or has answered, did not die of how it was started.
FORGIVE_AFTER_S = 10.0
# A model that failed is tried again when it is asked for after this long: what was wrong may have been mended.
RETRY_FAILED_AFTER_S = 60.0
# How many starts and wakes are remembered for status pages.
RECENT = 10
# Before anything was measured.
_FIRST_START_S = 10.0
_FIRST_WAKE_S = 0.3

logger = logging.getLogger(__name__)


class EngineLifecycle:
    """Owns the engine of one model; one event loop, and one operation at a time."""

    def __init__(
        self,
        model_id: str,
        make_engine: Callable[[], Engine],
        on_change: Callable[[], None],
        tier_of: Callable[[str], str],
    ) -> None:
        """``tier_of`` tells where a snapshot is."""
        self.model_id = model_id
        self.state: EngineState = "cold"
        self.reason: str | None = None
        self.can_sleep = True
        self.woken_at_s: float | None = None
        self.restarts = 0
        self.wakes = 0
        self.failed_at_s = 0.0
        # Measured once it has been awake, and asleep; 0 before.
        self.awake_bytes = 0
        self.asleep_bytes = 0
        self._make_engine = make_engine
        self._on_change = on_change
        self._tier_of = tier_of
        self._starts = StartTimes(_FIRST_START_S)
        self._wakes = StartTimes(_FIRST_WAKE_S)
        # Of the engine that was there last.
        self._last_report: StartReport = NOT_STARTED
        self._engine: Engine | None = None
        self._failures = 0
        self._recent: deque[StartEvent] = deque(maxlen=RECENT)
        # Where this is, as Ray calls it.
        self.node = ""
        self._started_at_s = 0.0
        self._has_answered = False
        self._began_s = time.monotonic()

    @property
    def engine(self) -> Engine | None:
        """The engine, while it can be asked."""
        return self._engine if self.state == "awake" else None

    @property
    def start_s(self) -> float:
        """How long a start would take from where the snapshot is now; a guess before the first."""
        return self._starts.seconds(self._tier())

    @property
    def wake_s(self) -> float:
        """How long a wake would take, as ``start_s``; for an engine that can't sleep, a start."""
        return self._wakes.seconds(self._tier()) if self.can_sleep else self.start_s

    @property
    def snapshot_id(self) -> str:
        """What it was last started from, or could be; empty while that isn't known."""
        return self._report()["snapshot_id"]

    def _report(self) -> StartReport:
        return self._last_report if self._engine is None else self._engine.start_report()

    def _tier(self) -> str:
        report = self._report()
        # Without a snapshot, the next start is as the last.
        return self._tier_of(report["snapshot_id"]) if report["snapshot_id"] else report["found_in"]

    def start(self) -> Coroutine[Any, Any, None]:
        """Make an engine and start it; after a few failures the model is ``failed``."""
        self._set("starting", self.reason)
        return self._start()

    async def _start(self) -> None:
        self._engine = engine = self._make_engine()
        begin_s = time.monotonic()
        try:
            await engine.start()
        except EngineStartError as error:
            logger.exception("engine of %s failed to start", self.model_id)
            self._engine = None
            self._fail(error.reason)
            return
        self._started_at_s, self._has_answered = time.monotonic(), False
        self._starts.measured(engine.start_report()["found_in"], self._started_at_s - begin_s)
        self._note("start", self._started_at_s - begin_s)
        self.awake_bytes = await engine.memory_bytes()
        self._awake("started")

    def sleep(self) -> Coroutine[Any, Any, None]:
        """Put the engine to sleep; it stays awake when it has requests in hand, or can't sleep at all."""
        self._set("sleeping", self.reason)
        return self._sleep()

    async def _sleep(self) -> None:
        engine = self._needed()
        try:
            await engine.sleep()
        except EngineBusyError:
            self._set("awake", self.reason)
        except SleepUnsupportedError as error:
            logger.warning("%s", error)
            self.can_sleep = False
            self._set("awake", self.reason)
        except EngineDiedError:
            await self._died()
        else:
            self.asleep_bytes = await engine.memory_bytes()
            self._set("asleep", self.reason)

    def wake(self) -> Coroutine[Any, Any, None]:
        """Wake the engine; one that doesn't wake as it fell asleep is ended, and will be started again."""
        self._set("waking", self.reason)
        return self._wake()

    async def _wake(self) -> None:
        engine = self._needed()
        begin_s = time.monotonic()
        try:
            await engine.wake()
        except WakeError as error:
            logger.exception("engine of %s did not wake", self.model_id)
            await self._died(error.reason)
        except EngineDiedError:
            await self._died()
        else:
            self._wakes.measured(engine.start_report()["found_in"], time.monotonic() - begin_s)
            self._note("wake", time.monotonic() - begin_s)
            self.wakes += 1
            self._awake("woken")

    def stop(self, reason: str | None = None) -> Coroutine[Any, Any, None]:
        """End the engine with its processes."""
        self._set("stopping", reason)
        return self._stop(reason)

    async def _stop(self, reason: str | None) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            self._last_report = engine.start_report()
            await engine.stop()
        self._set("cold", reason)

    async def close(self) -> None:
        """End the engine for good."""
        self._set("stopped", "the replica is stopping")
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()

    def retry(self) -> None:
        """Let a failed model be started again."""
        if self.state == "failed":
            self._failures = MAX_FAILURES - 1
            self._set("cold", self.reason)

    def answered(self) -> None:
        """Take note that the engine has answered a request: what ends it from now on is not how it was started."""
        self._has_answered = True

    def is_dead(self) -> bool:
        """Tell whether an engine that should live has died; ``bury`` follows."""
        if self._engine is None or self.state not in {"awake", "asleep"}:
            return False
        try:
            self._engine.check()
        except EngineDiedError:
            return True
        return False

    def bury(self) -> Coroutine[Any, Any, None]:
        """Clear away what a dead engine has left, for the next one."""
        logger.error("engine of %s died", self.model_id)
        return self._died()

    def keep_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """See ``Engine.keep_adapters``; an engine that isn't there has none."""
        if self._engine is not None:
            self._engine.keep_adapters(adapters)

    async def adapters(self) -> list[str]:
        """See ``Engine.adapters``. Raises EngineDiedError."""
        return [] if self._engine is None or self.state == "starting" else await self._engine.adapters()

    def recent(self) -> list[StartEvent]:
        """Return how it became ready the last few times, oldest first."""
        return list(self._recent)

    async def adapter_places(self) -> AdapterPlaces:
        """See ``Engine.adapter_places``; an engine that isn't awake is not asked."""
        if self._engine is None or self.state != "awake":
            return AdapterPlaces()
        return await self._engine.adapter_places()

    async def preload_adapter(self, adapter: AdapterRef) -> None:
        """See ``Engine.preload_adapter``."""
        if self._engine is None:
            raise EngineDiedError(self.model_id)
        await self._engine.preload_adapter(adapter)

    def describe(self, requests: int, waiting: int, arriving: int, arrived: int) -> EngineDescription:
        """Return the state for status pages and gateways."""
        engine = self._engine
        return {
            "state": self.state,
            "reason": self.reason,
            "supported_tasks": engine.supported_tasks() if engine is not None else [],
            "started_in_s": self._starts.latest_s(self._tier()),
            "woken_in_s": self._wakes.latest_s(self._tier()),
            "since_s": time.monotonic() - self._began_s,
            "restarts": self.restarts,
            "wakes": self.wakes,
            "requests": requests,
            "waiting": waiting,
            "arriving": arriving,
            "arrived": arrived,
            "awake_bytes": self.awake_bytes,
            "asleep_bytes": self.asleep_bytes,
            "is_up": self._started_at_s > 0 and self.state not in {"failed", "stopped"},
            "tier": self._tier(),
            "nodes": [self.node] if self.node and engine is not None else [],
            "start": engine.start_report() if engine is not None else NOT_STARTED,
            "recent": self.recent(),
        }

    def _note(self, kind: Literal["start", "wake"], took_s: float) -> None:
        report = self._needed().start_report()
        stages_s = dict(report["stages_s"] if kind == "start" else report["wake_stages_s"])
        event: StartEvent = {
            "kind": kind,
            "at_s": time.time(),
            "took_s": took_s,
            "tier": report["found_in"],
            "stages_s": stages_s,
            "begins_s": dict(report["begins_s"]) if kind == "start" else one_after_the_other(stages_s),
        }
        self._recent.append(event)

    def _died(self, reason: str = "its engine died") -> Coroutine[Any, Any, None]:
        self.restarts += 1
        return self._buried(self.stop(reason), reason)

    async def _buried(self, stopping: Coroutine[Any, Any, None], reason: str) -> None:
        await stopping
        if self._has_answered or time.monotonic() - self._started_at_s > FORGIVE_AFTER_S:
            self._failures = 0
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self.failed_at_s = time.monotonic()
        self._set("failed" if self._failures >= MAX_FAILURES else "cold", reason)

    def _needed(self) -> Engine:
        if self._engine is None:
            raise EngineDiedError(self.model_id)
        return self._engine

    def _awake(self, how: str) -> None:
        now_s = self.woken_at_s = time.monotonic()
        logger.info("engine of %s %s after %.2f s", self.model_id, how, now_s - self._began_s)
        self._set("awake", None)

    def _set(self, state: EngineState, reason: str | None) -> None:
        assert state in get_args(EngineState)  # noqa: S101 - a slip here would be silent
        if state != self.state:
            self._began_s = time.monotonic()
        self.state, self.reason = state, reason
        self._on_change()

    def __repr__(self) -> str:
        return f"<EngineLifecycle {self.model_id} {self.state}, {self.restarts} restarts, {self.wakes} wakes>"
