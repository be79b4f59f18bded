"""What serving everybody at once must cost whoever knows the future: the bound that policies are held against.

Covers: the least device-seconds with which no request waits, given that requests go to the lowest engine with a free
slot. Does not cover: what could be saved by letting some wait.

Each engine works in known intervals. In a gap between two of them it stays awake, or goes at once to some layer and
comes back just in time, whichever takes least; gaps don't touch each other, so the sum of the least is the least.
``tests/unit/test_replay.py`` holds it against trying everything.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from autoscaler.layers import AWAKE, Layer, Profile
from autoscaler.replay import SPENT, Outcome, Spent, total
from autoscaler.traces import Arrivals, Trace


def bound(trace: Trace, profile: Profile, slots: int, *, begin_s: float = 0.0, end_s: float = float("inf")) -> Outcome:
    """Return the bound for every series of the trace together; counted from ``begin_s`` to ``end_s``."""
    end_s = min(end_s, max(each.at_s[-1] for each in trace.values()))
    return total(bound_of(each.until(end_s), profile, slots, begin_s, end_s) for each in trace.values())


def bound_of(arrivals: Arrivals, profile: Profile, slots: int, begin_s: float, end_s: float) -> Outcome:
    """Return the bound for one series."""
    spent: dict[Spent, float] = dict.fromkeys(SPENT, 0.0)
    starts = 0
    for intervals in busy_intervals(arrivals, slots):
        before_s: float | None = None
        for from_s, to_s in intervals:
            spent["busy"] += max(0.0, min(to_s, end_s) - max(from_s, begin_s))
            if from_s >= begin_s:
                gap_s = from_s - before_s if before_s is not None else float("inf")
                layer, cost_s = cheapest(
                    min(gap_s, from_s - begin_s) if before_s is not None else gap_s, profile.layers
                )
                spent["idle" if layer == AWAKE else "starting"] += cost_s
                starts += layer != AWAKE
            before_s = to_s
    counted = int((arrivals.at_s >= begin_s).sum())
    return Outcome(np.zeros(counted), spent, starts=starts, prewarms=starts)


def cheapest(gap_s: float, layers: Sequence[Layer]) -> tuple[int, float]:
    """Return the layer in which to spend a gap, and the device-seconds that it takes."""
    costs = [(gap_s, AWAKE)]
    for index, layer in enumerate(layers[1:], start=1):
        if gap_s >= layer.ready_s:
            held_s = layer.device_share * (gap_s - layer.ready_s) if layer.device_share else 0.0
            costs.append((layer.ready_s + held_s, index))
    cost_s, index = min(costs)
    return index, cost_s


def busy_intervals(arrivals: Arrivals, slots: int) -> list[list[tuple[float, float]]]:
    """Return for each engine the intervals in which it works, if each request is served as it comes."""
    ends: list[tuple[float, int]] = []
    in_hand: list[int] = []
    began_s: list[float] = []
    intervals: list[list[tuple[float, float]]] = []
    for at_s, service_s in zip(arrivals.at_s.tolist(), arrivals.service_s.tolist(), strict=True):
        _finish(ends, at_s, in_hand, began_s, intervals)
        level = next((index for index, number in enumerate(in_hand) if number < slots), len(in_hand))
        if level == len(in_hand):
            in_hand.append(0)
            began_s.append(at_s)
            intervals.append([])
        if in_hand[level] == 0:
            began_s[level] = at_s
        in_hand[level] += 1
        heapq.heappush(ends, (at_s + service_s, level))
    _finish(ends, float("inf"), in_hand, began_s, intervals)
    return intervals


def _finish(
    ends: list[tuple[float, int]],
    until_s: float,
    in_hand: list[int],
    began_s: list[float],
    intervals: list[list[tuple[float, float]]],
) -> None:
    while ends and ends[0][0] <= until_s:
        end_s, level = heapq.heappop(ends)
        in_hand[level] -= 1
        if in_hand[level] == 0:
            intervals[level].append((began_s[level], end_s))
