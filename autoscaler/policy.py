"""How many engines of a series should be awake, and where the others should rest. A pure decision over plain data.

Covers: one series at one moment, with the reason. Does not cover: learning (``habits``), forecasting, room that series
share (``plan``), carrying it out (Serve, residency), which may refuse.

The rules, in the order in which they matter:

1. Measured load wins upward: as many engines as serve what is in hand and queued, as soon as a further one would be
   ready before the queue is worked off.
2. An engine that works, or is being started, is left alone, and one that was made ready ahead of time is kept for as
   long as that took.
3. Every further engine rests where its expected cost is least (``rest``), which may be awake: that is the forecast's
   floor. It falls engine by engine, the one that was needed least first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoscaler.layers import AWAKE, Layer
from autoscaler.rest import Course

CourseOf = Callable[[int], Course]


@dataclass(frozen=True, slots=True)
class EngineAt:
    """One engine of a series: in which layer it is, or will be once ``starting``.

    ``idle_since_s`` is None while it works; ``kept_until_s`` is until when it must not be put down.
    """

    layer: int
    idle_since_s: float | None
    starting: bool = False
    kept_until_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a series now; an engine serves ``slots`` requests at once, each in ``service_s``."""

    in_hand: int
    queued: int
    slots: int
    service_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """``layers[i]`` is where engine i should be; ``look_again_s`` when to ask again if nothing happens before.

    ``floor`` is how many engines the forecast wants awake, ``measured`` how many the load does.
    """

    layers: tuple[int, ...]
    measured: int
    floor: int
    reason: str
    look_again_s: float = math.inf


def decide(  # noqa: PLR0913, PLR0917 - everything a decision depends on
    engines: Sequence[EngineAt], load: Load, layers: Sequence[Layer], course_of: CourseOf, now_s: float, limit: int
) -> Decision:
    """Decide where each engine of a series should be; ``engines`` are by level, warmest need first.

    The answer has an entry for each engine and one for each further one that is to be started, at most ``limit``.
    ``course_of(level)`` is asked only for engines that are idle.
    """
    cold = len(layers) - 1
    measured = min(limit, needed(engines, load, layers))
    targets: list[int] = []
    floor = 0
    look_again_s = math.inf
    for level in range(limit):
        engine = engines[level] if level < len(engines) else EngineAt(cold, -math.inf)
        if level < measured or engine.starting or (engine.layer == AWAKE and engine.idle_since_s is None):
            targets.append(AWAKE)
            continue
        if engine.kept_until_s > now_s:
            targets.append(engine.layer)
            look_again_s = min(look_again_s, engine.kept_until_s)
            floor += engine.layer == AWAKE
            continue
        way = course_of(level)
        age_s = now_s - engine.idle_since_s if engine.idle_since_s is not None else 0.0
        age_s = min(age_s, 1e9)
        target = way.layer_at(age_s, engine.layer)
        if engine.idle_since_s is not None and math.isfinite(engine.idle_since_s):
            look_again_s = min(look_again_s, engine.idle_since_s + way.next_change_s(age_s, target))
        floor += target == AWAKE
        if level >= len(engines) and target == cold:
            break
        targets.append(target)
    return Decision(tuple(targets), measured, floor, _reason(engines, targets, measured, floor), look_again_s)


def needed(engines: Sequence[EngineAt], load: Load, layers: Sequence[Layer]) -> int:
    """Return how many engines the load in hand needs, those that are starting among them.

    Another one is started only if it would be ready before those there are have worked the queue off.
    """
    wanted = math.ceil((load.in_hand + load.queued) / load.slots)
    there = sum(engine.layer == AWAKE for engine in engines)
    if there == 0 or wanted <= there:
        return wanted
    while there < wanted:
        ready_s = layers[engines[there].layer if there < len(engines) else -1].ready_s
        beyond = load.in_hand + load.queued - there * load.slots
        if beyond * load.service_s / (there * load.slots) <= ready_s:
            break
        there += 1
    return there


def _reason(engines: Sequence[EngineAt], targets: Sequence[int], measured: int, floor: int) -> str:
    before = sum(engine.layer == AWAKE for engine in engines)
    after = sum(target == AWAKE for target in targets)
    if after > before:
        return "load" if measured > before else "forecast"
    if after < before:
        return "not expected soon"
    return "load" if measured >= after else "expected soon" if floor else "idle"
