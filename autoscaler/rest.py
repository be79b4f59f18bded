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
from collections.abc import Sequence
from dataclasses import dataclass

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
        lead_s = self.ready_s[layer]
        soonest = math.inf
        for index in range(bin_of(age_s) + 1, BINS):
            if _EDGES_S[index] - lead_s > soonest:
                break
            target = self.moves[index][layer]
            if target != layer:
                change_s = _EDGES_S[index] - (lead_s if target < layer else 0.0)
                soonest = min(soonest, change_s if change_s > age_s else math.inf)
        return soonest

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
    indices = range(len(layers))
    # What it costs to change from one layer to another: the device for the time that is gained by being warmer.
    change = [
        [max(0.0, ready_s[here] - ready_s[there]) if there < here else 0.0 for there in indices] for here in indices
    ]
    exposed = hazard * WIDTHS_S
    ends_of: list[float] = (-np.expm1(-exposed)).tolist()
    spent_of: list[float] = np.where(
        exposed > NOBODY, -np.expm1(-exposed) / np.maximum(hazard, 1e-300), WIDTHS_S
    ).tolist()
    ahead = [0.0] * len(layers)
    moves: list[tuple[int, ...]] = []
    for ends, spent_s in zip(reversed(ends_of), reversed(spent_of), strict=True):
        here = [shares[i] * spent_s + ends * asked[i] + (1.0 - ends) * ahead[i] for i in indices]
        best = []
        for i in indices:
            # A tie stays where it is.
            to, least = i, here[i]
            changes = change[i]
            for j in indices:
                cost = here[j] + changes[j]
                if cost < least:
                    to, least = j, cost
            best.append(to)
            ahead[i] = least
        moves.append(tuple(best))
    return Course(tuple(reversed(moves)), ready_s)
