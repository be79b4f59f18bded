"""Who is awake on a device: which engines of one replica start, wake, sleep and stop. A pure decision over plain data.

Covers: the device budget, whose turn it is, who makes room, idle engines. Does not cover: carrying it out, engines
that fail (``supervisor``), which replica gets a request (routing), bringing snapshots nearer (``storage.promote``).

The rules, in the order in which they matter:

1. What engines hold never exceeds the budget, an engine with work is never put to sleep, pinned engines stay.
2. Waiting models take turns by least slack. A model whose slack is used up is *due*. Its first tokens take longer the
   more wait for it and the more engines are at work, so a batch that has filled up is due before its time has expired.
3. Idle engines make room at once. Busy ones only for a model that is due and after ``min_residency_s`` awake: they
   are drained, that is, they take no new requests and sleep when those in hand have ended.
4. What a due model needs is kept for it: nobody behind it can take that.

So no request waits longer than
``max_starvation_s + ready_s + models x (ready_s + min_residency_s + drain_s + sleep_s + stop_s)``, where ``ready_s``
is the longest start or wake, ``drain_s`` the longest request and the others the longest of their kind on this device:
others overtake a model for no longer than the first two, and then every model is ahead of it at most once.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from deployments.engine_view import EngineView, State

NO_LIMIT_BYTES = 1 << 62
"""The budget of a device without one."""

ActionKind = Literal["start", "wake", "sleep", "stop"]

NEXT_STATE: dict[ActionKind, State] = {"start": "starting", "wake": "waking", "sleep": "sleeping", "stop": "stopping"}
"""The state in which an engine is from the moment its action is carried out."""


@dataclass(frozen=True)
class Limits:
    """``max_starvation_s`` caps every model's SLO: no model is so patient that others may overtake it for longer."""

    budget_bytes: int
    min_residency_s: float
    max_starvation_s: float

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget."""
        return self.budget_bytes < NO_LIMIT_BYTES


@dataclass(frozen=True)
class Action:
    """One step of one engine; each is possible at once, whatever the order."""

    kind: ActionKind
    model_id: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What to do now.

    ``drain`` and ``refused`` map model ids to reasons. A drained engine takes no new requests until it has slept or
    a later decision no longer names it. A refused model can't be awake here as things are: fail its requests.
    ``wait_until_s`` is when to ask again if nothing else happens.
    """

    actions: tuple[Action, ...] = ()
    drain: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    wait_until_s: float | None = None


def decide(engines: Iterable[EngineView], limits: Limits, now_s: float) -> Decision:
    """Decide which engines start, wake, sleep, stop and drain now.

    With the actions applied (``NEXT_STATE``) and ``draining`` set, asking again gives none.
    """
    plan = _Plan(sorted(engines, key=lambda engine: engine.model_id), limits, now_s)
    for engine in list(plan.engines):
        plan.let_rest(engine)
    if plan.free_bytes < 0:
        plan.make_room(0, -math.inf, "the budget is exceeded")
    wanted = [engine for engine in plan.engines if engine.state in ("cold", "asleep") and engine.wanted(now_s)]
    for engine in sorted(wanted, key=lambda engine: deadline_s(engine, limits)):
        plan.bring(engine)
    return plan.decision()


def deadline_s(engine: EngineView, limits: Limits) -> float:
    """Return when the slack of an engine that is not awake is used up: its SLO less the time to its first tokens.

    Ordering by it is least slack first (Mok 1983); the slack is ``deadline_s - now_s``. That it shrinks as a batch
    fills is ServerlessLoRA's fill-or-expire: who waits for a turn waits SLO - T(b), and T(b) counts once for each batch
    that competes for the device.
    """
    if engine.pinned:
        return -math.inf
    if engine.oldest_waiting_since_s is None:
        return math.inf
    ready_s = engine.wake_s if engine.state == "asleep" else engine.start_s
    return (
        engine.oldest_waiting_since_s + min(engine.ttft_slo_s, limits.max_starvation_s) - ready_s - engine.first_token_s
    )


class _Plan:
    """The decision in the making.

    ``free_bytes`` can be used now, ``coming_bytes`` once engines have fallen asleep or stopped, both without what is
    already meant for someone. ``taken`` are the engines whose fate is settled.
    """

    def __init__(self, engines: list[EngineView], limits: Limits, now_s: float) -> None:
        self.engines = engines
        self.limits = limits
        self.now_s = now_s
        self.free_bytes = limits.budget_bytes - sum(engine.held_bytes for engine in engines)
        self.coming_bytes = _freed_bytes(engine for engine in engines if engine.state in ("sleeping", "stopping"))
        pinned = (engine for engine in engines if engine.pinned and engine.state not in ("asleep", "stopping"))
        self.pinned_bytes = sum(engine.held_bytes for engine in pinned)
        self.taken: set[str] = set()
        self.actions: list[Action] = []
        self.drain: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.looks_s: list[float] = []

    def let_rest(self, engine: EngineView) -> None:
        """Put the engine to sleep, or stop it, if nobody has used it for long."""
        keep_s = engine.keep_awake_s if engine.state == "awake" else engine.keep_asleep_s
        if engine.state not in ("awake", "asleep") or keep_s is None or not engine.unused or engine.pinned:
            return
        # Arrivals without memory are expected 1 / rate from any moment on, however long the engine has been idle.
        if engine.rate_per_s is not None and engine.rate_per_s * keep_s >= 1:
            return
        rest_s = max(engine.idle_since_s + keep_s, engine.keep_awake_until_s or -math.inf)
        if rest_s <= self.now_s:
            self._displace(engine, f"unused for {self.now_s - engine.idle_since_s:.1f} s")
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
        needed_bytes = engine.awake_bytes - engine.held_bytes
        due_s = deadline_s(engine, self.limits)
        if needed_bytes <= self.free_bytes:
            self._step("wake" if engine.state == "asleep" else "start", engine, _why(engine, due_s, self.now_s))
            self.free_bytes -= needed_bytes
            self.pinned_bytes += engine.awake_bytes if engine.pinned else 0
        # Nobody makes room for what nobody waits for.
        elif due_s < math.inf:
            self.taken.add(engine.model_id)
            self.make_room(needed_bytes, due_s, f"makes room for {engine.model_id}")

    def make_room(self, needed_bytes: int, due_s: float, reason: str) -> None:
        """Free what is missing and set it aside, once all of it can be freed: half a room helps nobody."""
        missing_bytes = needed_bytes - self.free_bytes - self.coming_bytes
        chosen = self._choose(missing_bytes, self._beyond_sleep_bytes(needed_bytes), due_s)
        movable_s = max((self._movable_s(engine, due_s) for engine in chosen), default=-math.inf)
        # What falls asleep can still be stopped afterwards.
        chosen_ids = {engine.model_id for engine in chosen if engine.state == "awake"}
        falling = (engine for engine in self.engines if engine.state == "sleeping" or engine.model_id in chosen_ids)
        enough = missing_bytes - _freed_bytes(chosen) <= sum(engine.asleep_bytes for engine in falling)
        if enough and movable_s <= self.now_s:
            for engine in chosen:
                self._displace(engine, reason)
        elif due_s > self.now_s:
            self.looks_s.append(max(movable_s, due_s))
            return
        else:
            self.looks_s.append(movable_s)
            self.taken.update(engine.model_id for engine in chosen)
            needed_bytes = max(0, needed_bytes - _freed_bytes(chosen))
        from_free_bytes = min(self.free_bytes, needed_bytes)
        self.free_bytes -= from_free_bytes
        self.coming_bytes -= needed_bytes - from_free_bytes

    def decision(self) -> Decision:
        """Return what has been decided."""
        wait_until_s = min((look_s for look_s in self.looks_s if self.now_s < look_s < math.inf), default=None)
        return Decision(tuple(self.actions), self.drain, self.refused, wait_until_s)

    def _beyond_sleep_bytes(self, needed_bytes: int) -> int:
        """Return what would be missing if every engine slept that isn't pinned: what waiting for a turn can't give."""
        resting = (engine.held_bytes if engine.pinned else engine.resting_bytes for engine in self.engines)
        return needed_bytes + sum(resting) - self.limits.budget_bytes

    def _choose(self, missing_bytes: int, beyond_sleep_bytes: int, due_s: float) -> list[EngineView]:
        """Return who makes room; from engines that sleep already, only what sleep can't give.

        However many wait: to stop sleeping engines for one more at a time makes cold starts of many wakes.
        """
        left = [engine for engine in self.engines if engine.model_id not in self.taken and engine.freed_bytes > 0]
        in_turn = [engine for engine in left if engine.state in ("awake", "starting", "waking") and not engine.pinned]
        in_turn.sort(key=lambda engine: self._harm(engine, due_s))
        asleep = [engine for engine in left if engine.state == "asleep"]
        asleep.sort(key=lambda engine: (engine.wanted(self.now_s), *self._loss(engine)))
        stopped = _fewest(asleep, min(missing_bytes - _freed_bytes(in_turn), beyond_sleep_bytes))
        return stopped + _fewest(in_turn, missing_bytes - _freed_bytes(stopped))

    def _harm(self, engine: EngineView, due_s: float) -> tuple[object, ...]:
        movable_s = max(self.now_s, self._movable_s(engine, due_s))
        return not engine.empty, not engine.draining, movable_s, *self._loss(engine)

    def _loss(self, engine: EngineView) -> tuple[float, float, str]:
        return engine.lost_per_byte(self.now_s), engine.idle_since_s, engine.model_id

    def _movable_s(self, engine: EngineView, due_s: float) -> float:
        """Return from when on the engine may be displaced for a model that is due at ``due_s``."""
        if engine.state == "asleep" or engine.empty:
            return -math.inf
        if engine.state != "awake" or engine.owes_batch:
            return math.inf  # until something happens to it
        return max(due_s, engine.resident_since_s + self.limits.min_residency_s)

    def _displace(self, engine: EngineView, reason: str) -> None:
        self.taken.add(engine.model_id)
        self.coming_bytes += engine.freed_bytes
        if engine.state == "asleep":
            self._step("stop", engine, reason)
        elif engine.empty:
            self._step("sleep", engine, reason)
        else:
            self.drain[engine.model_id] = reason

    def _step(self, kind: ActionKind, engine: EngineView, reason: str) -> None:
        """Do as if it had been done: what is decided next takes it into account."""
        self.actions.append(Action(kind, engine.model_id, reason))
        self.engines[self.engines.index(engine)] = replace(engine, state=NEXT_STATE[kind])


def _freed_bytes(engines: Iterable[EngineView]) -> int:
    return sum(engine.freed_bytes for engine in engines)


def _fewest(candidates: Sequence[EngineView], missing_bytes: int) -> list[EngineView]:
    """Return the first of ``candidates`` that together free ``missing_bytes``, all if they don't."""
    chosen: list[EngineView] = []
    for engine in candidates:
        if missing_bytes <= 0:
            break
        chosen.append(engine)
        missing_bytes -= engine.freed_bytes
    # One large engine at the end may have made smaller ones' leaving needless.
    for engine in chosen[::-1]:
        if missing_bytes + engine.freed_bytes <= 0:
            chosen.remove(engine)
            missing_bytes += engine.freed_bytes
    return chosen


def _why(engine: EngineView, due_s: float, now_s: float) -> str:
    if engine.oldest_waiting_since_s is not None and not engine.pinned:
        return f"a request has waited {now_s - engine.oldest_waiting_since_s:.1f} s, its slack is {due_s - now_s:.1f} s"
    return "pinned" if engine.pinned else "asked to be awake, and there is free room"
