"""The engines of a replica and the requests for them: who is served, who waits, who sleeps.

Covers: holding requests until their model is awake, one wake however many wait, carrying out what ``residency``
decides, looking for engines that died. Does not cover: the decision itself, what is known of one model (``resident``),
an engine's changes of state (``lifecycle``), tokens (``replica``).
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from deployments.engine import Engine
from deployments.engine_view import EngineView, Expectation, room_bytes
from deployments.errors import EngineDiedError, ReplicaLeavingError, UnknownModelError
from deployments.health import check_goes_on
from deployments.lifecycle import RETRY_FAILED_AFTER_S, EngineLifecycle
from deployments.prewarms import Prewarms
from deployments.request_trace import trace_hold
from deployments.residency import Action, Limits, decide
from deployments.residency_watch import Unwatched
from deployments.resident import Resident
from deployments.tracing import NO_SPAN, Span
from deployments.types import Arrival, EngineDescription, ModelSpec

# How often engines are looked at when nothing happens: a death is noticed by then.
LOOK_PERIOD_S = 0.5
# As long as the replica's own limit says.
DEFAULT_WAIT = -1.0

logger = logging.getLogger(__name__)


class Residents:
    """The models of one replica; one event loop. ``run`` first, ``close`` last."""

    def __init__(
        self,
        specs: list[ModelSpec],
        make_engine: Callable[[ModelSpec], Engine],
        limits: Limits,
        max_wait_s: float,
        tier_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        """``max_wait_s`` is how long a request is held for its model; ``tier_of`` tells where a snapshot is."""
        self.watch = Unwatched()
        # The node that this is on, as Ray calls it.
        self.node = ""
        self.limits = limits
        self._max_wait_s = max_wait_s
        self._kicked = asyncio.Event()
        # Set whenever something that ``describe`` and ``views`` tell has changed; whoever watches clears it.
        self.changed = asyncio.Event()
        self._watchers: list[asyncio.Future[None]] = []
        self._make_engine = make_engine
        self._tier_of = tier_of
        # Called when a model gets no more requests because others wait for its room.
        self.on_drain: Callable[[str], None] = lambda _: None
        self._residents: dict[str, Resident] = {}
        self.host(specs)
        self._draining: dict[str, str] = {}
        self._expected: Mapping[str, Expectation] = {}
        self.prewarms = Prewarms()
        self._operations: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None

    def host(self, specs: list[ModelSpec]) -> None:
        """Host these models from now on, and no others.

        Engines of the others, and of those whose spec asks for another engine, end after the requests they have in
        hand. Who waits for a model that goes is turned away; who waits for one that changes gets the new engine.
        """
        hosted = {spec.id: spec for spec in specs}
        for model_id, resident in self._residents.items():
            spec = hosted.pop(model_id, None)
            if spec is None:
                resident.is_leaving, resident.successor = True, None
                resident.turn_away(UnknownModelError(model_id))
            elif resident.is_leaving:
                resident.successor = spec
            elif spec.revision == resident.spec.revision:
                resident.spec = spec
                resident.life.keep_adapters(spec.adapters)
            else:
                resident.is_leaving, resident.successor = True, spec
        for spec in hosted.values():
            now_s = time.monotonic()
            self._residents[spec.id] = Resident(spec, self._life(spec), now_s, last_used_s=now_s)
        self._kicked.set()

    def hosts(self, model_id: str, revision: str | None) -> bool:
        """Tell whether requests for a model can be taken, or be held: with ``revision``, those made for that spec."""
        resident = self._residents.get(model_id)
        if resident is None:
            return False
        spec = resident.successor if resident.is_leaving else resident.spec
        return spec is not None and revision in {None, spec.revision}

    def _life(self, spec: ModelSpec) -> EngineLifecycle:
        life = EngineLifecycle(
            spec.id, lambda: self._make_engine(self._as_listed(spec)), self._on_change, self._tier_of
        )
        life.node = self.node
        return life

    def _as_listed(self, spec: ModelSpec) -> ModelSpec:
        # Its adapters come and go without another engine.
        resident = self._residents.get(spec.id)
        return spec if resident is None else replace(spec, adapters=resident.spec.adapters)

    def run(self) -> None:
        """Begin to look after the engines."""
        self._looking = asyncio.get_running_loop().create_task(self._look_after())

    def expect(self, expected: Mapping[str, Expectation]) -> None:
        """Take what a plan says of models, in the place of what it said before.

        Nothing is made room for because of it, and who has said how long a model stays awake, or that it shall sleep,
        is obeyed instead.
        """
        self._expected = expected
        self._kicked.set()

    def served(self, model_id: str, seconds: float) -> None:
        """Take a measurement: a request took so long from when it was admitted."""
        if (resident := self._residents.get(model_id)) is not None:
            resident.served += 1
            resident.served_s += seconds

    def first_token(self, model_id: str, seconds: float, others: int) -> None:
        """Take a measurement: a first token or embedding came so long after its request, which found ``others``."""
        if (resident := self._residents.get(model_id)) is not None:
            resident.life.answered()
            resident.first_token(seconds, others, max(1, self._at_work()))

    def _at_work(self) -> int:
        return sum(resident.running > 0 for resident in self._residents.values())

    def take_served(self) -> dict[str, tuple[int, float]]:
        """Return by model how many requests have ended since this was asked, and how long one took on the mean."""
        found = {model_id: resident.take_served() for model_id, resident in self._residents.items()}
        return {model_id: served for model_id, served in found.items() if served is not None}

    @asynccontextmanager
    async def use(
        self,
        model_id: str,
        *,
        keep_awake_s: float | None = None,
        max_wait_s: float | None = DEFAULT_WAIT,
        tenant: str = "",
        span: Span = NO_SPAN,
    ) -> AsyncIterator[Engine]:
        """Give the model's engine, awake, for one request; held until then, at most ``max_wait_s`` unless that is None.

        ``tenant`` is whom its time is for, ``span`` what traces the request.

        Raises:
            UnknownModelError: this replica does not host the model.
            EngineUnavailableError: it failed, does not fit, or did not wake in time.
            ReplicaLeavingError: everything ends here.
        """
        resident = self._known(model_id)
        state, begin_s = resident.life.state, time.monotonic()
        engine = await self._admitted(resident, self._max_wait_s if max_wait_s == DEFAULT_WAIT else max_wait_s)
        try:
            resident.began(tenant, self.watch)
            self.watch.held(model_id, state, time.monotonic() - begin_s)
            if span:
                trace_hold(span, state, begin_s, time.monotonic(), resident.life.recent())
            yield engine
        finally:
            resident.ended(tenant, keep_awake_s, self.watch)
            self.changed.set()
            self._kicked.set()

    def receiving(self, model_id: str, arrival: Arrival | None) -> AbstractContextManager[None]:
        """Count a request, which has the engine from ``use``, by how its stream comes from elsewhere."""
        return self._residents[model_id].receiving(arrival)

    async def supported_tasks(self, model_id: str) -> list[str]:
        """Return vLLM's names of what a model can do, waiting for its first start. Raises as ``use``."""
        resident = self._known(model_id)
        if resident.tasks is None:
            # However long it takes: a model that is being started for the first time is no request that waits.
            async with self.use(model_id, max_wait_s=None) as engine:
                resident.tasks = engine.supported_tasks()
        return resident.tasks

    async def wake(self, model_id: str) -> None:
        """Wake a model without a request, also one that failed. Raises as ``use``."""
        resident = self._known(model_id)
        resident.life.retry()
        async with self.use(model_id):
            pass

    async def sleep(self, model_id: str) -> None:
        """Put a model to sleep as soon as it has no request in hand.

        Raises:
            UnknownModelError: this replica does not host the model.
        """
        resident = self._known(model_id)
        resident.is_dismissed = True
        await self._until(lambda: resident.life.state not in {"awake", "sleeping"} or bool(resident.waiting))

    def describe(self) -> dict[str, EngineDescription]:
        """Return each model's engine with its state."""
        return {model_id: resident.describe() for model_id, resident in self._residents.items()}

    async def adapters(self) -> dict[str, list[str]]:
        """Return by model the names of the adapters that its engine has in memory."""
        found: dict[str, list[str]] = {}
        for model_id, resident in list(self._residents.items()):
            # An engine that ends meanwhile has none.
            with contextlib.suppress(EngineDiedError):
                found[model_id] = await resident.life.adapters()
        return found

    def with_adapters(self) -> dict[str, EngineLifecycle]:
        """Return the engines of models that take adapters."""
        return {name: resident.life for name, resident in self._residents.items() if resident.spec.lora_enabled}

    def planned(self) -> list[tuple[Resident, Expectation]]:
        """Return the models of which the plan says something, with that."""
        expected = self._expected
        return [(resident, expected[name]) for name, resident in self._residents.items() if name in expected]

    def views(self) -> list[EngineView]:
        """Return each model's engine as the residency decision sees it."""
        now_s, at_work = time.monotonic(), self._at_work()
        return [
            resident.view(self._expected.get(model_id), now_s, draining=model_id in self._draining, at_work=at_work)
            for model_id, resident in self._residents.items()
        ]

    def room_bytes(self) -> int:
        """Return what is free on the device, or held by engines that are awake and not used."""
        return room_bytes(self.views(), self.limits.budget_bytes)

    def check(self) -> None:
        """Raise what has ended the care of the engines, if anything has."""
        check_goes_on(self._looking, "looking after the engines")

    async def close(self) -> None:
        """End every engine with its processes."""
        tasks = [task for task in (self._looking, *self._operations) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for resident in self._residents.values():
            resident.turn_away(ReplicaLeavingError(resident.spec.id, "the replica is stopping"))
        await asyncio.gather(*(resident.life.close() for resident in self._residents.values()))

    async def stop(self, model_id: str) -> None:
        """Put a model to sleep, and end its processes; it stays cold until it is asked for. Raises as ``sleep``."""
        await self.sleep(model_id)
        resident = self._known(model_id)
        if resident.life.state == "asleep" and not resident.waiting:
            self._operate(resident.life.stop("it was stopped"))
        await self._until(lambda: resident.life.state != "stopping")

    async def _until(self, holds: Callable[[], bool]) -> None:
        self._kicked.set()
        while not holds():
            change = asyncio.get_running_loop().create_future()
            self._watchers.append(change)
            await change

    def _on_change(self) -> None:
        for resident in self._residents.values():
            resident.settle(self.watch)
        self._kicked.set()
        self.changed.set()
        watchers, self._watchers = self._watchers, []
        for change in watchers:
            if not change.done():
                change.set_result(None)

    def _known(self, model_id: str) -> Resident:
        if not self.hosts(model_id, None):
            raise UnknownModelError(model_id)
        return self._residents[model_id]

    async def _admitted(self, resident: Resident, max_wait_s: float | None) -> Engine:
        if resident.life.state == "stopped":
            raise ReplicaLeavingError(resident.spec.id, "the replica is stopping")
        self.prewarms.asked(resident.spec.id, awake=resident.life.engine is not None)
        ticket = resident.queue()
        self.changed.set()
        self._admit(resident)
        if not ticket.done():
            self._kicked.set()
        return await resident.wait_for(ticket, max_wait_s)

    def _admit(self, resident: Resident) -> None:
        """Let everybody in who waits for a model that is awake."""
        engine = resident.life.engine
        if engine is None or resident.is_leaving or resident.life.is_dead() or resident.spec.id in self._draining:
            return
        resident.let_in(engine)

    async def _look_after(self) -> None:
        wait_s = LOOK_PERIOD_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._kicked.wait()
            self._kicked.clear()
            try:
                wait_s = self._look()
            except Exception:
                # Nobody else would look after the engines.
                logger.exception("looking after engines failed")
                wait_s = LOOK_PERIOD_S

    def _look(self) -> float:
        now_s = time.monotonic()
        for resident in list(self._residents.values()):
            resident.settle(self.watch)
            resident.census(self.watch)
            if resident.is_leaving:
                self._see_off(resident)
                continue
            self._look_at(resident, now_s)
            # First, so that what has just become awake serves those it woke for before its place is given away.
            self._admit(resident)
        decision = decide(self.views(), self.limits, now_s)
        for model_id in decision.drain.keys() - self._draining.keys():
            self.on_drain(model_id)
        self._draining = decision.drain
        for model_id, reason in decision.refused.items():
            self._residents[model_id].refuse(reason)
        for action in decision.actions:
            if not self._residents[action.model_id].is_leaving:
                self._carry_out(action)
        for resident in self._residents.values():
            self._admit(resident)
        looks_s = [each.from_s for each in self._expected.values() if each.from_s > now_s]
        if decision.wait_until_s is not None:
            looks_s.append(decision.wait_until_s)
        return min(LOOK_PERIOD_S, max(0.0, min(looks_s, default=math.inf) - now_s))

    def _see_off(self, resident: Resident) -> None:
        life = resident.life
        if life.state in {"awake", "asleep"} and resident.running == 0:
            self._operate(life.stop("it is no longer served" if resident.successor is None else "it was changed"))
        elif life.state in {"cold", "failed"}:
            if resident.successor is None:
                del self._residents[resident.spec.id]
                return
            # The same resident, because requests may wait with it.
            resident.spec, resident.successor = resident.successor, None
            resident.life, resident.is_leaving = self._life(resident.spec), False
            resident.tasks, resident.is_wanted = None, True

    def _look_at(self, resident: Resident, now_s: float) -> None:
        life = resident.life
        if life.state not in {"starting", "waking", "awake"}:
            self.prewarms.put_down(resident.spec.id, now_s)
        if life.is_dead():
            resident.is_wanted = True
            self._operate(life.bury())
        elif life.state == "awake":
            resident.is_wanted = False
        elif life.state == "failed":
            if resident.waiting and now_s - life.failed_at_s > RETRY_FAILED_AFTER_S:
                life.retry()
            else:
                resident.is_wanted = False
                resident.turn_away(life.reason or "its engine failed")

    def _carry_out(self, action: Action) -> None:
        resident = self._residents[action.model_id]
        life = resident.life
        logger.info("%s %s: %s", action.kind, action.model_id, action.reason)
        expected, now_s = self._expected.get(action.model_id), time.monotonic()
        unasked = not resident.waiting and not resident.is_wanted and resident.spec.pin != "gpu"
        if action.kind in {"start", "wake"} and unasked and expected is not None and expected.is_due(now_s):
            logger.info("%s is made ready ahead of requests: %s", action.model_id, expected.reason)
            self.prewarms.began(action.model_id, now_s)
        match action.kind:
            case "start":
                self._operate(life.start())
            case "wake":
                self._operate(life.wake())
            case "sleep" if life.can_sleep:
                self._operate(life.sleep())
            case _:
                self._operate(life.stop(action.reason))

    def _operate(self, operation: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(operation)
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)

    def __repr__(self) -> str:
        return f"<Residents {[resident.life for resident in self._residents.values()]!r}>"
