"""Who is awake on a device: which engines of one replica start, wake, sleep and stop. A pure decision over plain data.

Covers: the device budget, whose turn it is, who makes room, idle engines. Does not cover: carrying it out, engines
that fail (``supervisor``), which replica gets a request (routing), bringing snapshots nearer (``storage.promote``).

The rules, in the order in which they matter:

1. What engines hold never exceeds the budget, an engine with work is never put to sleep, pinned engines stay.
2. Waiting models take turns by least slack. A model whose slack is used up is *due*.
3. Idle engines make room at once. Busy ones only for a model that is due and after ``min_residency_s`` awake: they
   are drained, that is, they take no new requests and sleep when those in hand have ended.
4. What a due model needs is kept for it: nobody behind it can take that.

So the first request of a model waits no longer than
``max_starvation_s + ready_s + models x (min_residency_s + drain_s + sleep_s + ready_s)``, where ``ready_s`` is the
longest start, ``drain_s`` the longest request and ``sleep_s`` the longest way to sleep on this device.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["cold", "starting", "awake", "sleeping", "asleep", "waking", "stopping", "failed"]

_IN_TURN: tuple[State, ...] = ("starting", "awake", "waking")


@dataclass(frozen=True)
class EngineView:
    """An engine as the decision sees it.

    A failed engine holds nothing and gets nothing; whoever supervises it answers its requests.
    """

    model_id: str
    state: State
    awake_bytes: int
    """Held on the device from the first moment of a start or wake to the end of falling asleep."""
    asleep_bytes: int
    """Still held on the device when asleep: context, graphs."""
    wake_s: float
    start_s: float
    """Estimates of how long it takes until the engine serves, asleep and cold."""
    ttft_slo_s: float
    keep_awake_s: float
    """Idle time after which the engine sleeps."""
    last_used_s: float
    """When its last request ended, or began if it is in hand."""
    running: int = 0
    """Requests in the engine's hands, whether it computes them or queues them itself."""
    oldest_waiting_since_s: float | None = None
    """Arrival of the oldest request held back until the engine is awake and not draining; None when there is none."""
    woken_at_s: float | None = None
    """When the engine last became awake, from asleep or cold."""
    draining: bool = False
    """Whether the last decision drained it; without it, two candidates could take turns and neither get empty."""
    rate_per_s: float | None = None
    """Forecast of its requests; None when there is none."""
    keep_awake_until_s: float | None = None
    """Asked for by a request's ``keep_alive``, an operator or a plan: until then the engine doesn't sleep for being
    idle, and wakes if there is free room."""
    keep_asleep_s: float | None = None
    """Unused time after which an asleep engine stops; None for never."""
    pinned: bool = False
    """Whether it is to be awake always."""


@dataclass(frozen=True)
class Limits:
    """``max_starvation_s`` caps every model's SLO: no model is so patient that others may overtake it for longer."""

    budget_bytes: int
    min_residency_s: float
    max_starvation_s: float


@dataclass(frozen=True)
class Action:
    """One step of one engine; each is possible at once, whatever the order."""

    kind: Literal["start", "wake", "sleep", "stop"]
    model_id: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What to do now.

    ``drain`` and ``refused`` map model ids to reasons. A drained engine takes no new requests until it has slept or
    a later decision no longer names it. A refused model can't be awake here as things are: fail its requests.
    ``wait_until_s`` is when to ask again if nothing else happens; asking earlier changes nothing.
    """

    actions: tuple[Action, ...] = ()
    drain: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    wait_until_s: float | None = None


def decide(engines: Iterable[EngineView], limits: Limits, now_s: float) -> Decision:
    """Decide which engines start, wake, sleep, stop and drain now.

    With the actions applied (to starting, waking, sleeping, stopping) and ``draining`` set, asking again gives none.
    """
    plan = _Plan(sorted(engines, key=lambda engine: engine.model_id), limits, now_s)
    for engine in plan.engines:
        plan.let_rest(engine)
    if plan.free_bytes < 0:
        plan.make_room(0, -math.inf, "what exceeds the budget")
    wanted = (engine for engine in plan.engines if engine.state in ("cold", "asleep") and _wanted(engine, now_s))
    for engine in sorted(wanted, key=lambda engine: deadline_s(engine, limits)):
        plan.bring(engine)
    return plan.decision()


def deadline_s(engine: EngineView, limits: Limits) -> float:
    """Return when the slack of an engine that is not awake is used up: its SLO less the time to get ready.

    Ordering by it is least slack first (Mok 1983); the slack is ``deadline_s - now_s``.
    """
    if engine.pinned:
        return -math.inf
    if engine.oldest_waiting_since_s is None:
        return math.inf
    ready_s = engine.wake_s if engine.state == "asleep" else engine.start_s
    return engine.oldest_waiting_since_s + min(engine.ttft_slo_s, limits.max_starvation_s) - ready_s


def held_bytes(engine: EngineView) -> int:
    """Return what the engine is charged with."""
    if engine.state in (*_IN_TURN, "sleeping"):
        return engine.awake_bytes
    return engine.asleep_bytes if engine.state in ("asleep", "stopping") else 0


def freed_bytes(engine: EngineView) -> int:
    """Return what one step down frees: sleep, or stop if it sleeps already."""
    return engine.asleep_bytes if engine.state in ("asleep", "stopping") else engine.awake_bytes - engine.asleep_bytes


def lost_per_byte(engine: EngineView, now_s: float) -> float:
    """Return the expected seconds of waiting, a second and a freed byte, that one step down costs.

    Rate x cost / size as in FaasCache (Fuerst and Sharma, ASPLOS
    2021), the cost being the waiting. Without a forecast, the rate is one request in the time since the last.
    """
    rate_per_s = engine.rate_per_s
    if rate_per_s is None:
        rate_per_s = 1 / max(1.0, now_s - _idle_since_s(engine))
    waiting_s = max(0.0, engine.start_s - engine.wake_s) if engine.state == "asleep" else engine.wake_s
    return rate_per_s * waiting_s / max(1, freed_bytes(engine))


class _Plan:
    """The decision in the making.

    ``free_bytes`` can be used now, ``coming_bytes`` once engines have fallen asleep or stopped, both without what is
    already meant for someone. ``taken`` are the engines whose fate is settled.
    """

    def __init__(self, engines: Sequence[EngineView], limits: Limits, now_s: float) -> None:
        self.engines = engines
        self.limits = limits
        self.now_s = now_s
        self.free_bytes = limits.budget_bytes - sum(map(held_bytes, engines))
        self.coming_bytes = sum(freed_bytes(engine) for engine in engines if engine.state in ("sleeping", "stopping"))
        self.pinned_bytes = sum(held_bytes(engine) for engine in engines if engine.pinned and engine.state != "asleep")
        self.taken: set[str] = set()
        self.actions: list[Action] = []
        self.drain: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.looks_s: list[float] = []

    def let_rest(self, engine: EngineView) -> None:
        """Put the engine to sleep, or stop it, if nobody has used it for long."""
        keep_s = engine.keep_awake_s if engine.state == "awake" else engine.keep_asleep_s
        if engine.state not in ("awake", "asleep") or keep_s is None or not _unused(engine) or engine.pinned:
            return
        # Arrivals without memory are 1 / rate apart from any moment on, so having been idle long says nothing then.
        if engine.rate_per_s is not None and engine.rate_per_s * keep_s >= 1:
            return
        rest_s = max(_idle_since_s(engine) + keep_s, engine.keep_awake_until_s or -math.inf)
        if rest_s <= self.now_s:
            self._displace(engine, f"unused for {self.now_s - _idle_since_s(engine):.1f} s")
        else:
            self.looks_s.append(rest_s)

    def bring(self, engine: EngineView) -> None:
        """Wake or start the engine, or have room made for it."""
        if engine.model_id in self.taken:
            return
        if engine.awake_bytes > self.limits.budget_bytes - self.pinned_bytes:
            self.refused[engine.model_id] = (
                f"needs {engine.awake_bytes} of {self.limits.budget_bytes} bytes, {self.pinned_bytes} are pinned"
            )
            return
        needed_bytes = engine.awake_bytes - held_bytes(engine)
        due_s = deadline_s(engine, self.limits)
        if needed_bytes <= self.free_bytes:
            kind: Literal["start", "wake"] = "wake" if engine.state == "asleep" else "start"
            self.actions.append(Action(kind, engine.model_id, _why(engine, due_s, self.now_s)))
            self.free_bytes -= needed_bytes
            self.pinned_bytes += engine.awake_bytes if engine.pinned else 0
            self.taken.add(engine.model_id)
        # Nobody makes room for what nobody waits for.
        elif due_s < math.inf:
            self.taken.add(engine.model_id)
            self.make_room(needed_bytes, due_s, engine.model_id)

    def make_room(self, needed_bytes: int, due_s: float, beneficiary: str) -> None:
        """Free what is missing and set it aside, once all of it can be freed: half a room helps nobody."""
        missing_bytes = needed_bytes - self.free_bytes - self.coming_bytes
        awake = sorted(
            (engine for engine in self._candidates(_IN_TURN) if not engine.pinned),
            key=lambda engine: self._least_harm_first(engine, due_s),
        )
        asleep = sorted(self._candidates(["asleep"]), key=self._least_loss_first)
        # Only what sleep can't give is taken from engines that sleep already.
        chosen = _fewest(asleep, missing_bytes - sum(map(freed_bytes, awake)))
        chosen += _fewest(awake, missing_bytes - sum(map(freed_bytes, chosen)))
        gain_bytes = sum(map(freed_bytes, chosen))
        ready_s = max((self._movable_s(engine, due_s) for engine in chosen), default=-math.inf)
        # Engines falling asleep for it can still be stopped afterwards.
        falling = [engine for engine in self.engines if engine.state == "sleeping" or engine in chosen]
        enough = missing_bytes - gain_bytes <= sum(engine.asleep_bytes for engine in falling)
        if enough and ready_s <= self.now_s:
            for engine in chosen:
                self._displace(engine, f"makes room for {beneficiary}")
        else:
            self.looks_s.append(max(ready_s, due_s))
            if due_s > self.now_s:
                return
            needed_bytes -= gain_bytes
        self.taken.update(engine.model_id for engine in chosen)
        # First what is still coming, so that those behind can use what is free already.
        from_coming_bytes = max(0, min(self.coming_bytes, needed_bytes))
        self.coming_bytes -= from_coming_bytes
        self.free_bytes -= max(0, needed_bytes - from_coming_bytes)

    def decision(self) -> Decision:
        """Return what has been decided."""
        wait_until_s = min((look_s for look_s in self.looks_s if self.now_s < look_s < math.inf), default=None)
        return Decision(tuple(self.actions), self.drain, self.refused, wait_until_s)

    def _candidates(self, states: Collection[State]) -> Iterator[EngineView]:
        for engine in self.engines:
            if engine.state in states and engine.model_id not in self.taken and freed_bytes(engine) > 0:
                yield engine

    def _least_harm_first(self, engine: EngineView, due_s: float) -> tuple[bool, bool, float, float, float, str]:
        movable_s = max(self.now_s, self._movable_s(engine, due_s))
        loss = lost_per_byte(engine, self.now_s)
        return not _empty(engine), not engine.draining, movable_s, loss, _idle_since_s(engine), engine.model_id

    def _least_loss_first(self, engine: EngineView) -> tuple[bool, float, float, str]:
        wanted = engine.pinned or engine.oldest_waiting_since_s is not None
        return wanted, lost_per_byte(engine, self.now_s), _idle_since_s(engine), engine.model_id

    def _movable_s(self, engine: EngineView, due_s: float) -> float:
        """Return from when on the engine may be displaced for a model that is due at ``due_s``."""
        if engine.state == "asleep" or _empty(engine):
            return -math.inf
        if engine.state != "awake":
            ready_s = engine.wake_s if engine.state == "waking" else engine.start_s
            return max(due_s, self.now_s + ready_s + self.limits.min_residency_s)
        if not engine.draining and _batch_waits(engine):
            return math.inf
        return max(due_s, _woken_at_s(engine) + self.limits.min_residency_s)

    def _displace(self, engine: EngineView, reason: str) -> None:
        self.coming_bytes += freed_bytes(engine)
        self.taken.add(engine.model_id)
        if engine.state == "asleep":
            self.actions.append(Action("stop", engine.model_id, reason))
        elif _empty(engine):
            self.actions.append(Action("sleep", engine.model_id, reason))
        else:
            self.drain[engine.model_id] = reason


def _wanted(engine: EngineView, now_s: float) -> bool:
    kept = engine.keep_awake_until_s is not None and engine.keep_awake_until_s > now_s
    return engine.oldest_waiting_since_s is not None or engine.pinned or kept


def _unused(engine: EngineView) -> bool:
    return engine.running == 0 and engine.oldest_waiting_since_s is None


def _empty(engine: EngineView) -> bool:
    """Whether the engine can be put to sleep: what waits for a draining engine waits for its next turn."""
    return engine.state == "awake" and engine.running == 0 and (engine.draining or _unused(engine))


def _batch_waits(engine: EngineView) -> bool:
    """Whether requests that it was woken for have not been handed to it yet."""
    since_s = engine.oldest_waiting_since_s
    return since_s is not None and since_s <= _woken_at_s(engine)


def _woken_at_s(engine: EngineView) -> float:
    return -math.inf if engine.woken_at_s is None else engine.woken_at_s


def _idle_since_s(engine: EngineView) -> float:
    return max(engine.last_used_s, _woken_at_s(engine))


def _why(engine: EngineView, due_s: float, now_s: float) -> str:
    if engine.oldest_waiting_since_s is not None:
        return f"a request has waited {now_s - engine.oldest_waiting_since_s:.1f} s, its slack is {due_s - now_s:.1f} s"
    return "pinned" if engine.pinned else "asked to be awake, and there is free room"


def _fewest(candidates: Sequence[EngineView], wanted_bytes: int) -> list[EngineView]:
    """Return the first of ``candidates`` that together free ``wanted_bytes``, all if they don't."""
    chosen: list[EngineView] = []
    missing_bytes = wanted_bytes
    for engine in candidates:
        if missing_bytes <= 0:
            break
        chosen.append(engine)
        missing_bytes -= freed_bytes(engine)
    # One large engine at the end may have made smaller ones' leaving needless.
    for engine in chosen[::-1]:
        if missing_bytes + freed_bytes(engine) <= 0:
            chosen.remove(engine)
            missing_bytes += freed_bytes(engine)
    return chosen
