"""How policies with one number to set are compared: at no more waiting, and at no more cost. Pure.

Covers: which setting to choose on a part that came before, and which of another policy's settings to hold against it.
Does not cover: replaying. Nothing is read off between two settings: a policy can do only what one of its settings does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SOON_S = 1.0
SAME_S = 0.01
"""Waits that differ by less are equal."""


@dataclass(frozen=True)
class Point:
    """What one setting came to on one part: device-seconds, seconds of added waiting, requests that waited."""

    idle_s: float
    total_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    cold: int
    soon: float
    starts: int


Tried = Mapping[float, Point]
"""Points by setting."""


def chosen(tried: Tried) -> float:
    """Return the setting that costs least with p95 within ``SOON_S``, else of those with the least p95 the cheapest."""
    good = [setting for setting, point in tried.items() if point.p95_s <= SOON_S]
    if not good:
        least_s = min(point.p95_s for point in tried.values())
        good = [setting for setting, point in tried.items() if point.p95_s <= least_s + SAME_S]
    return min(good, key=lambda setting: (tried[setting].idle_s, setting))


def no_later(tried: Tried, p95_s: float) -> Point | None:
    """Return the cheapest point whose p95 is no later; None if there is none."""
    good = [point for point in tried.values() if point.p95_s <= p95_s + SAME_S]
    return min(good, key=lambda point: point.idle_s) if good else None


def no_dearer(tried: Tried, total_s: float) -> Point | None:
    """Return of the points that take no more device-seconds the one with least p95, then p99, then waits; or None."""
    good = [point for point in tried.values() if point.total_s <= total_s * 1.001]
    return min(good, key=lambda point: (round(point.p95_s, 2), round(point.p99_s, 2), point.cold)) if good else None


def lower(one: float, other: float, same: float = 0.0) -> bool:
    """Whether ``one`` is lower, or both are as good as nothing."""
    return one < other - same or (one <= same and other <= same)


def higher(one: float, other: float, same: float = 0.0) -> bool:
    """Whether ``one`` is higher."""
    return one > other + same


def worse(one: float, other: float, same: float = 0.0) -> bool:
    """Whether ``one`` is higher by more than 5 %, and by more than ``same``."""
    return one > 1.05 * other and one > other + same
