"""A device and its engines in virtual time, driven by ``decide`` or by a first-come-first-served baseline.

Event-driven: arrivals, ends of requests, ends of transitions, and the times at which the policy wants to look again.
Requests of an awake engine run side by side (continuous batching) without slowing each other down.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from deployments.engine_view import EngineView, State
from deployments.residency import NEXT_STATE, Action, Decision, Limits, decide

Policy = Callable[[list[EngineView], Limits, float], Decision]
# What must hold after each step: the engines before the decision, the decision, the time.
Watcher = Callable[[list[EngineView], Decision, float], None]

END_STATE: dict[str, State] = {"starting": "awake", "waking": "awake", "sleeping": "asleep", "stopping": "cold"}


def applied(engines: list[EngineView], decision: Decision) -> list[EngineView]:
    """What engines are once a decision is carried out."""
    states = {action.model_id: NEXT_STATE[action.kind] for action in decision.actions}
    return [
        replace(view, state=states.get(view.model_id, view.state), draining=view.model_id in decision.drain)
        for view in engines
    ]


@dataclass(frozen=True)
class SimulatedModel:
    model_id: str
    awake_bytes: int
    rate_per_s: float
    asleep_bytes: int = 1
    start_s: float = 20.0
    wake_s: float = 1.0
    sleep_s: float = 0.2
    stop_s: float = 0.1
    longest_request_s: float = 10.0
    ttft_slo_s: float = 5.0
    keep_awake_s: float = 60.0
    pinned: bool = False
    forecast: bool = True


@dataclass(frozen=True)
class Report:
    """``ttft_s`` in the order of first tokens; prefill is left out, being the same whatever the policy.

    ``switches`` counts starts and wakes, ``late`` the requests that missed their model's SLO.
    """

    ttft_s: list[float]
    late: int
    refused: int
    switches: int
    ended_s: float

    def percentile_s(self, percent: float) -> float:
        ordered = sorted(self.ttft_s)
        return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass
class SimulatedEngine:
    model: SimulatedModel
    state: State
    running: int = 0
    waiting: deque[float] = field(default_factory=deque)  # arrivals
    woken_at_s: float | None = None
    last_used_s: float = 0.0
    draining: bool = False

    def view(self) -> EngineView:
        model = self.model
        return EngineView(
            model.model_id, self.state, model.awake_bytes, model.asleep_bytes, model.wake_s, model.start_s,
            model.ttft_slo_s, model.keep_awake_s, self.last_used_s, running=self.running, draining=self.draining,
            oldest_waiting_since_s=self.waiting[0] if self.waiting else None, woken_at_s=self.woken_at_s,
            rate_per_s=model.rate_per_s if model.forecast else None, pinned=model.pinned,
        )  # fmt: skip


class Simulation:
    """Runs until no request is left and nothing is under way; ``run`` once."""

    def __init__(
        self,
        models: list[SimulatedModel],
        limits: Limits,
        policy: Policy = decide,
        watcher: Watcher | None = None,
        state: State = "asleep",
    ) -> None:
        self.engines = {model.model_id: SimulatedEngine(model, state) for model in models}
        self.limits = limits
        self.policy = policy
        self.watcher = watcher
        self.now_s = 0.0
        self.ttft_s: list[float] = []
        self.late = 0
        self.refused = 0
        self.switches = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._requests_s = random.Random()  # noqa: S311 - lengths of requests, not secrets

    def run(self, seed: int, arrivals_until_s: float) -> Report:
        """Serve Poisson traffic of every model until ``arrivals_until_s``, then what is left of it."""
        self._requests_s.seed(seed)
        for model_id, arrival_s in _arrivals(
            [engine.model for engine in self.engines.values()], seed, arrivals_until_s
        ):
            self._at(arrival_s, lambda model_id=model_id: self._arrive(model_id))  # type: ignore[misc]
        while self._events:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
            if not self._events or self._events[0][0] > self.now_s:
                self._settle()
        return Report(self.ttft_s, self.late, self.refused, self.switches, self.now_s)

    def _at(self, at_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), happen))

    def _arrive(self, model_id: str) -> None:
        self.engines[model_id].waiting.append(self.now_s)

    def _settle(self) -> None:
        """Hand over what can be handed over, decide, apply; once more if that let another engine take requests."""
        while True:
            self._hand_over()
            views = [engine.view() for engine in self.engines.values()]
            decision = self.policy(views, self.limits, self.now_s)
            if self.watcher is not None:
                self.watcher(views, decision, self.now_s)
            released = self._apply(decision)
            if not released:
                break
        if decision.wait_until_s is not None:
            self._at(decision.wait_until_s, lambda: None)

    def _hand_over(self) -> None:
        for engine in self.engines.values():
            while engine.state == "awake" and not engine.draining and engine.waiting:
                waited_s = self.now_s - engine.waiting.popleft()
                self.ttft_s.append(waited_s)
                self.late += waited_s > engine.model.ttft_slo_s
                engine.running += 1
                engine.last_used_s = self.now_s
                length_s = self._requests_s.uniform(0.1, 1.0) * engine.model.longest_request_s
                self._at(self.now_s + length_s, lambda engine=engine: self._end_request(engine))  # type: ignore[misc]

    def _end_request(self, engine: SimulatedEngine) -> None:
        engine.running -= 1
        engine.last_used_s = self.now_s

    def _apply(self, decision: Decision) -> bool:
        """Return whether a drained engine was released."""
        for action in decision.actions:
            self._begin(action)
        released = False
        for model_id, engine in self.engines.items():
            drained = model_id in decision.drain
            released |= engine.draining and not drained and engine.state == "awake"
            engine.draining = drained
            if model_id in decision.refused:
                self.refused += len(engine.waiting)
                engine.waiting.clear()
        return released

    def _begin(self, action: Action) -> None:
        engine = self.engines[action.model_id]
        engine.state = NEXT_STATE[action.kind]
        self.switches += action.kind in ("start", "wake")
        model = engine.model
        length_s = {"start": model.start_s, "wake": model.wake_s, "sleep": model.sleep_s, "stop": model.stop_s}
        self._at(self.now_s + length_s[action.kind], lambda: self._end_transition(engine))

    def _end_transition(self, engine: SimulatedEngine) -> None:
        engine.state = END_STATE[engine.state]
        if engine.state == "awake":
            engine.woken_at_s = self.now_s


def first_come_first_served(engines: list[EngineView], limits: Limits, now_s: float) -> Decision:
    """Return what a server does that swaps models in the order of requests.

    The model of the oldest waiting request is next. The least recently used engines leave for it, busy ones after
    draining. Until it is awake, later requests wait behind it, whatever their model.
    """
    swap = first_come_first_swapped(engines, limits, now_s)
    if all(engine.oldest_waiting_since_s is None for engine in engines if engine.state != "awake"):
        return swap
    queue = {engine.model_id: "waits its turn" for engine in engines if engine.state == "awake"}
    return Decision(swap.actions, queue | swap.drain)


def first_come_first_swapped(engines: list[EngineView], limits: Limits, now_s: float) -> Decision:
    """The same, but requests for models that are awake and not leaving are served at once."""
    del now_s
    waiting = [engine for engine in engines if engine.state == "asleep" and engine.oldest_waiting_since_s is not None]
    if not waiting:
        return Decision()
    head = min(waiting, key=lambda engine: engine.oldest_waiting_since_s or 0.0)
    free_bytes = limits.budget_bytes - sum(engine.held_bytes for engine in engines)
    missing_bytes = head.awake_bytes - head.held_bytes - free_bytes
    if missing_bytes <= 0:
        return Decision((Action("wake", head.model_id, "first come"),))
    missing_bytes -= sum(engine.freed_bytes for engine in engines if engine.state == "sleeping")
    actions, drain = [], {}
    awake = (engine for engine in engines if engine.state == "awake")
    for engine in sorted(awake, key=lambda engine: (engine.running > 0, engine.last_used_s)):
        if missing_bytes <= 0:
            break
        missing_bytes -= engine.freed_bytes
        if engine.running:
            drain[engine.model_id] = "least recently used"
        else:
            actions.append(Action("sleep", engine.model_id, "least recently used"))
    return Decision(tuple(actions), drain)


def skewed_models(count: int, requests_per_s: float, exponent: float = 1.0, **fields: object) -> list[SimulatedModel]:
    """Return equal models whose rates fall as a power law (Zipf) and sum up to ``requests_per_s``."""
    weights = [1 / rank**exponent for rank in range(1, count + 1)]
    return [
        SimulatedModel(f"m{rank:02}", 100, requests_per_s * weight / sum(weights), **fields)  # type: ignore[arg-type]
        for rank, weight in enumerate(weights)
    ]


def _arrivals(models: list[SimulatedModel], seed: int, until_s: float) -> Iterator[tuple[str, float]]:
    for model in models:
        chance = random.Random(f"{seed} {model.model_id}")  # noqa: S311 - traffic, not secrets
        at_s = chance.expovariate(model.rate_per_s) if model.rate_per_s else math.inf
        while at_s < until_s:
            yield model.model_id, at_s
            at_s += chance.expovariate(model.rate_per_s)
