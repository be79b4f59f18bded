"""Where should an idle engine rest, and when should it be awake again? The cheapest course through its layers.

Covers: one engine whose next use is foretold by a hazard (``idle``). Does not cover: demand beyond one engine
(``policy``), room that many engines share (``plan``).

At each age of the quiet the engine rests in one layer. A second there costs that layer's share of a device; being
asked for there costs the wait until it is ready, at what waiting is worth, and the device meanwhile. Going down is
free, going up takes the device for as long as it takes. The course of least expected cost follows by backward
induction over the bins of the hazard (Bellman), so that keep-alive times, prewarming before a timer is due, and giving
up where it was missed are one rule with one number to set: how many device-seconds a second of waiting is worth.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoscaler.idle import BINS, EDGES_S, WIDTHS_S, bin_of
from autoscaler.layers import AWAKE, Layer
from autoscaler.types import Floats

PATIENT_SHARE = 0.1
NOBODY = 1e-9
"""A chance that is less is none: dividing by it would lose its digits."""
_EDGES_S: list[float] = EDGES_S.tolist()


@dataclass(frozen=True)
class Course:
    """``moves[bin][layer]`` is the layer in which an engine that has come to the bin in ``layer`` should be."""

    moves: tuple[tuple[int, ...], ...]
    ready_s: tuple[float, ...]

    def layer_at(self, age_s: float, layer: int) -> int:
        """Return where an engine in ``layer``, unused for ``age_s``, should go now. Ups begin as early as they take."""
        ahead = self.moves[bin_of(age_s + self.ready_s[layer])][layer]
        if ahead < layer:
            return ahead
        return max(layer, self.moves[bin_of(age_s)][layer])

    def next_change_s(self, age_s: float, layer: int) -> float:
        """Return the age from which ``layer_at`` may say something else for ``layer``; infinite if never."""
        soonest = math.inf
        leaving = self._leaving[layer]
        for _, change_s, earliest_s in leaving[bisect_right(leaving, (bin_of(age_s), math.inf, math.inf)) :]:
            if earliest_s > soonest:
                break
            if age_s < change_s < soonest:
                soonest = change_s
        return soonest

    @cached_property
    def _leaving(self) -> tuple[list[tuple[int, float, float]], ...]:
        """Return by layer the bins in which it is left, each with when that begins and when the earliest later can.

        They are few: to go through all bins each time was most of what a decision took.
        """
        return tuple(
            [
                (index, _EDGES_S[index] - (lead_s if to[layer] < layer else 0.0), _EDGES_S[index] - lead_s)
                for index, to in enumerate(self.moves)
                if to[layer] != layer
            ]
            for layer, lead_s in enumerate(self.ready_s)
        )

    def awake_span(self, age_s: float, layer: int) -> tuple[float, float] | None:
        """Return from which age on an engine in ``layer`` should become awake, and until which it stays so unasked.

        The beginning is early by what it takes; None if it isn't worth it at any age.
        """
        lead_s = self.ready_s[layer]
        now = bin_of(age_s + lead_s)
        begins = next((index for index in range(now, BINS) if self.moves[index][layer] == AWAKE), None)
        if begins is None:
            return None
        ends = next((index for index in range(begins + 1, BINS) if self.moves[index][AWAKE] != AWAKE), None)
        from_s = age_s if begins == now else _EDGES_S[begins] - lead_s
        return max(age_s, from_s), math.inf if ends is None else _EDGES_S[ends]


def felt_s(waiting_s: float, patience_s: float) -> float:
    """Return what a wait is reckoned as: its first ``patience_s`` weigh ``PATIENT_SHARE``, users hardly mind them."""
    patient_s = min(waiting_s, patience_s)
    return PATIENT_SHARE * patient_s + (waiting_s - patient_s)


def course(hazard: Floats, burst: float, layers: Sequence[Layer], worth: float, patience_s: float = 0.0) -> Course:
    """Return the cheapest course.

    ``hazard`` is [bins] a second, ``burst`` how many requests wait if one does, ``worth`` the device-seconds that one
    second of one request's waiting may cost once it is longer than ``patience_s`` (``felt_s``).
    """
    ready_s = tuple(layer.ready_s for layer in layers)
    shares = [layer.device_share for layer in layers]
    asked = [worth * burst * felt_s(each, patience_s) + each for each in ready_s]
    exposed = hazard * WIDTHS_S
    ends = -np.expm1(-exposed)
    spent_s = np.where(exposed > NOBODY, ends / np.maximum(hazard, 1e-300), WIDTHS_S)
    # [bins, layers]: what the bin itself costs.
    costs: list[list[float]] = (np.outer(spent_s, shares) + np.outer(ends, asked)).tolist()
    goes_on: list[float] = (1.0 - ends).tolist()
    backwards = zip(reversed(costs), reversed(goes_on), strict=True)
    moves = (_of_three if len(layers) == _THREE else cheapest)(backwards, ready_s)
    return Course(tuple(reversed(moves)), ready_s)


def cheapest(backwards: Iterable[tuple[Sequence[float], float]], ready_s: Sequence[float]) -> list[tuple[int, ...]]:
    """Return where to go from each layer, for each bin from the last to the first.

    Of a bin is told what it costs in each layer, and the chance that the quiet goes on.
    """
    indices = range(len(ready_s))
    # What it costs to change from one layer to another: the device for the time that is gained by being warmer.
    changes = [
        [
            (there, max(0.0, ready_s[here] - ready_s[there]) if there < here else 0.0)
            for there in indices
            if there != here
        ]
        for here in indices
    ]
    ahead = [0.0] * len(ready_s)
    moves: list[tuple[int, ...]] = []
    for cost, on in backwards:
        here = [each + on * later for each, later in zip(cost, ahead, strict=True)]
        best = []
        for i in indices:
            # A tie stays where it is.
            to, least = i, here[i]
            for j, change in changes[i]:
                moved = here[j] + change
                if moved < least:
                    to, least = j, moved
            best.append(to)
            ahead[i] = least
        moves.append(tuple(best))
    return moves


_THREE = 3


def _of_three(backwards: Iterable[tuple[Sequence[float], float]], ready_s: Sequence[float]) -> list[tuple[int, ...]]:
    """See ``cheapest``: the same without loops, for awake, asleep and cold. A third of a replay's time was there."""
    up_10, up_20, up_21 = (max(0.0, ready_s[here] - ready_s[there]) for here, there in ((1, 0), (2, 0), (2, 1)))
    ahead_0 = ahead_1 = ahead_2 = 0.0
    moves: list[tuple[int, ...]] = []
    for (cost_0, cost_1, cost_2), on in backwards:
        here_0, here_1, here_2 = cost_0 + on * ahead_0, cost_1 + on * ahead_1, cost_2 + on * ahead_2
        to_0, ahead_0 = 0, here_0
        if here_1 < ahead_0:
            to_0, ahead_0 = 1, here_1
        if here_2 < ahead_0:
            to_0, ahead_0 = 2, here_2
        to_1, ahead_1 = 1, here_1
        if here_0 + up_10 < ahead_1:
            to_1, ahead_1 = 0, here_0 + up_10
        if here_2 < ahead_1:
            to_1, ahead_1 = 2, here_2
        to_2, ahead_2 = 2, here_2
        if here_0 + up_20 < ahead_2:
            to_2, ahead_2 = 0, here_0 + up_20
        if here_1 + up_21 < ahead_2:
            to_2, ahead_2 = 1, here_1 + up_21
        moves.append((to_0, to_1, to_2))
    return moves
