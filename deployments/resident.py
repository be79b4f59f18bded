"""One model of a replica: its engine and what is asked of it, and both as the residency decision sees them.

Covers: who waits and who is served, how long it is to stay awake. Does not cover: what is done about it
(``residents``).
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from deployments.device_time import DeviceTime
from deployments.engine import Engine
from deployments.engine_view import EngineView, Expectation
from deployments.errors import DeploymentError, EngineUnavailableError
from deployments.event_log import event_line
from deployments.fitted_line import FittedLine
from deployments.lifecycle import EngineLifecycle
from deployments.residency_watch import Unwatched
from deployments.types import Arrival, EngineDescription, EngineState, ModelSpec

logger = logging.getLogger(__name__)


@dataclass
class Resident:
    """Times are the event loop's, in seconds."""

    spec: ModelSpec
    life: EngineLifecycle
    added_s: float
    waiting: dict[asyncio.Future[Engine], float] = field(default_factory=dict)
    running: int = 0
    last_used_s: float = 0.0
    keep_awake_until_s: float | None = None
    # As the last request wanted it; None for what its spec says.
    keep_awake_s: float | None = None
    # Somebody has asked for it to sleep, and nobody for anything else since.
    is_dismissed: bool = False
    # A model is started once without being asked for, so that what it can do is known, and again after a death.
    is_wanted: bool = True
    tasks: list[str] | None = None
    # Requests that have ended since somebody asked, and how long they took together.
    served: int = 0
    served_s: float = 0.0
    # Seconds to a first token by how many others are in the engine, as if it had the device for itself.
    first_tokens: FittedLine = field(default_factory=lambda: FittedLine(base=0.0, slope=0.0))
    # It is no longer hosted, or (with a successor) not as it is: its engine ends after the requests in hand.
    is_leaving: bool = False
    successor: ModelSpec | None = None
    # Requests in hand by tenant, and whose time the engine's is.
    tenants: Counter[str] = field(default_factory=Counter)
    # Streams that are about to move here, and those that have gone on here after a move or a loss elsewhere.
    arriving: int = 0
    arrived: int = 0
    device_time: DeviceTime = field(default_factory=lambda: DeviceTime(time.monotonic()))
    # The state that was last told to whoever watches.
    told_state: EngineState | None = None

    def settle(self, watch: Unwatched) -> None:
        """Tell ``watch`` what the engine's time was used for until now, and its state if that is another one."""
        model_id, state = self.spec.id, self.life.state
        if spent := self.device_time.settle(state, self.tenants, time.monotonic()):
            watch.spent(model_id, spent)
        if state != self.told_state:
            before, self.told_state = self.told_state, state
            watch.changed(model_id, before, state)
            logger.info(event_line("engine.state", model=model_id, state=state, was=before, reason=self.life.reason))

    def census(self, watch: Unwatched) -> None:
        """Tell ``watch`` the engine's state, who waits for it, and what it holds of the device."""
        held_bytes = {"awake": self.life.awake_bytes, "asleep": self.life.asleep_bytes}.get(self.life.state, 0)
        watch.seen(self.spec.id, self.life.state, len(self.waiting), held_bytes)

    @property
    def is_idle(self) -> bool:
        """Whether its engine is awake with nothing in hand."""
        return self.life.state == "awake" and not (self.running or self.waiting or self.is_leaving)

    def refuse(self, reason: str) -> None:
        """Turn away who waits, and start it for nobody: it doesn't fit."""
        self.turn_away(reason)
        self.is_wanted = False
        self.life.reason = reason

    def queue(self) -> asyncio.Future[Engine]:
        """Let one more wait for the engine: on the ticket that this returns."""
        ticket: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
        self.waiting[ticket] = time.monotonic()
        self.is_dismissed = False
        return ticket

    async def wait_for(self, ticket: asyncio.Future[Engine], max_wait_s: float | None) -> Engine:
        """Return the engine when it is given, at most ``max_wait_s`` from now unless that is None.

        Raises:
            EngineUnavailableError: it was not, or who waits was turned away.
        """
        try:
            async with asyncio.timeout(max_wait_s):
                return await ticket
        except TimeoutError:
            if ticket.done() and not ticket.cancelled():
                # Given at the same moment.
                return ticket.result()
            # Not the reason: it may name a model that others have asked for.
            reason = f"it was not awake within {max_wait_s:g} s ({self.life.state})"
            raise EngineUnavailableError(self.spec.id, reason) from None
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
                self.running -= 1
            raise
        finally:
            self.waiting.pop(ticket, None)

    def let_in(self, engine: Engine) -> None:
        """Give the engine to everybody who waits for it."""
        for ticket in self.waiting:
            if not ticket.done():
                # Counted here and not when the waiter runs: until then the engine must not seem idle.
                self.running += 1
                ticket.set_result(engine)
        self.waiting.clear()

    def turn_away(self, why: str | DeploymentError) -> None:
        """Refuse everybody who waits."""
        error = EngineUnavailableError(self.spec.id, why) if isinstance(why, str) else why
        for ticket in self.waiting:
            if not ticket.done():
                ticket.set_exception(error)
        self.waiting.clear()

    def take_served(self) -> tuple[int, float] | None:
        """Return how many requests have ended since this was asked, and how long one took on the mean."""
        count, served_s = self.served, self.served_s
        self.served, self.served_s = 0, 0.0
        return (count, served_s / count) if count else None

    @contextmanager
    def receiving(self, arrival: Arrival | None) -> Iterator[None]:
        """Count a request that is about a stream of another replica, as long as it takes."""
        self.arrived += arrival == "resumed"
        self.arriving += arrival == "prepared"
        try:
            yield
        finally:
            self.arriving -= arrival == "prepared"

    def describe(self) -> EngineDescription:
        """Return its engine and what is asked of it."""
        return self.life.describe(self.running, len(self.waiting), self.arriving, self.arrived)

    def began(self, tenant: str, watch: Unwatched) -> None:
        """Take note that a request of the tenant, which ``let_in`` has counted, has begun."""
        self.tenants[tenant] += 1
        self.settle(watch)

    def ended(self, tenant: str, keep_awake_s: float | None, watch: Unwatched) -> None:
        """Count a request's end; ``keep_awake_s`` is how long it wants its model kept awake, None for no wish."""
        now_s = time.monotonic()
        self.tenants[tenant] -= 1
        self.running -= 1
        self.last_used_s = now_s
        self.keep_awake_s = keep_awake_s
        if keep_awake_s is not None:
            self.keep_awake_until_s = max(self.keep_awake_until_s or 0.0, now_s + keep_awake_s)
        self.settle(watch)

    def first_token(self, seconds: float, others: int, at_work: int) -> None:
        """Take a measurement: a first token came so long after its request, which found ``others`` in the engine.

        ``at_work`` engines shared the device, this one among them.
        """
        self.first_tokens = self.first_tokens.measured(others, seconds / at_work)

    def view(self, expected: Expectation | None, now_s: float, *, draining: bool, at_work: int = 0) -> EngineView:
        """Return it as the decision sees it; who asked for it goes before what is ``expected``.

        ``at_work`` engines have the device now. T(b) = T0 + a (b - 1), times as many as compete (ServerlessLoRA).
        """
        spec, life = self.spec, self.life
        if self.keep_awake_s is not None:
            expected = None
        return EngineView(
            model_id=spec.id,
            state="failed" if life.state == "stopped" else life.state,
            awake_bytes=self._awake_bytes(),
            asleep_bytes=life.asleep_bytes,
            wake_s=life.wake_s,
            start_s=life.start_s,
            ttft_slo_s=spec.ttft_slo_s,
            keep_awake_s=self._keep_awake_s(),
            last_used_s=self.last_used_s,
            running=self.running,
            first_token_s=self.first_tokens.at(max(0, len(self.waiting) - 1)) * (at_work + 1),
            oldest_waiting_since_s=self._waiting_since_s(),
            woken_at_s=life.woken_at_s,
            draining=draining,
            rate_per_s=None if expected is None else expected.expected_per_s,
            keep_awake_until_s=self._keep_awake_until_s(expected, now_s),
            pinned=spec.pin == "gpu",
        )

    def _awake_bytes(self) -> int:
        measured_bytes = self.life.awake_bytes or self.spec.awake_bytes
        if self.spec.device == "gpu" and self.life.state in {"cold", "starting"}:
            # vLLM doesn't start with less, whatever the engine before took.
            return max(measured_bytes, self.spec.awake_bytes)
        return measured_bytes

    def _waiting_since_s(self) -> float | None:
        if self.is_leaving:
            return None
        since_s = min(self.waiting.values(), default=None)
        if since_s is None and self.is_wanted and self.life.state in {"cold", "asleep"}:
            return self.added_s
        return since_s

    def _keep_awake_s(self) -> float:
        if self.is_dismissed:
            return 0.0
        keep_s = self.spec.keep_awake_s if self.keep_awake_s is None else self.keep_awake_s
        return math.inf if keep_s is None or not self.life.can_sleep else keep_s

    def _keep_awake_until_s(self, expected: Expectation | None, now_s: float) -> float | None:
        if self.is_dismissed or self.is_leaving:
            return None
        if expected is not None and expected.is_due(now_s):
            return max(self.keep_awake_until_s or 0.0, expected.until_s)
        return self.keep_awake_until_s
