"""When will an idle series be asked for again? The inter-arrival histogram of sparse series.

After "Serverless in the Wild" (Shahrad et al., ATC 2020), with three differences: bins grow with the gap, so that one
histogram spans a second to weeks; old gaps fade; and what is read off it is the *hazard*, the chance of an arrival in
the next second given how long it has been quiet, from which follow how long to stay ready and when to be ready again. A
young series borrows the gaps of all series.
"""

import math
from dataclasses import dataclass

import numpy as np

from autoscaler.types import Floats

BINS_PER_OCTAVE = 4
OCTAVES = 21
SHORTEST_S = 0.5
EDGES_S = SHORTEST_S * 2.0 ** (np.arange(OCTAVES * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE)
"""[bins + 1]: gaps between EDGES_S[i] and EDGES_S[i + 1] fall into bin i; shorter and longer ones into the ends."""
BINS = len(EDGES_S) - 1
WIDTHS_S = np.diff(EDGES_S)
FADE = 0.995
FEWEST = 1e-3
"""Gaps that have faded to less are forgotten."""
PRIOR_GAPS = 10.0
"""As many gaps of its own outweigh what a series borrows."""


def bin_of(gap_s: float) -> int:
    """Return the bin into which the gap falls."""
    if gap_s <= SHORTEST_S:
        return 0
    return min(BINS - 1, int(math.log2(gap_s / SHORTEST_S) * BINS_PER_OCTAVE))


KERNEL = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
"""Spreads a gap over its neighbours: people don't come as punctually as timers."""
UNSEEN = 0.05


@dataclass
class Gaps:
    """Gaps between the end of one use and the beginning of the next, counted by length and fading.

    ``punctual`` is by how much, in fading logarithms of likelihood, the gaps were foretold better bin by bin than
    spread over neighbouring bins: the one that has foretold them better lately is believed.
    """

    weights: Floats
    fade: float = FADE
    seen: int = 0
    punctual: float = 0.0

    @classmethod
    def none(cls, fade: float = FADE) -> "Gaps":
        """Return a histogram without gaps."""
        return cls(np.zeros(BINS), fade)

    def add(self, gap_s: float) -> None:
        """Count a gap; those before it weigh less from now on."""
        index = bin_of(gap_s)
        low, high = max(0, index - 2), min(BINS, index + 3)
        spread = float(self.weights[low:high] @ KERNEL[low - index + 2 : high - index + 2])
        self.punctual *= self.fade
        self.punctual += math.log((float(self.weights[index]) + UNSEEN) / (spread + UNSEEN))
        self.weights *= self.fade
        self.weights[index] += 1.0
        self.seen += 1

    def likely(self) -> Floats:
        """Return the weights as they foretell best."""
        return self.weights if self.punctual > 0 else np.convolve(self.weights, KERNEL, "same").astype(np.float64)


def hazard_per_s(gaps: Gaps, prior: Gaps | None, counts_as: float = PRIOR_GAPS) -> Floats:
    """Return [bins]: the chance a second that a gap which has lasted until this bin ends in it.

    The actuarial estimate: gaps that end in the bin, over the time that gaps spend in it, those that end there half of
    it. ``prior`` counts as ``counts_as`` gaps.
    """
    weights = gaps.likely()
    if prior is not None and (total := float(prior.weights.sum())) > 0:
        weights = weights + prior.weights * (counts_as / total)
    reached = np.cumsum(weights[::-1])[::-1]
    exposed = (reached - 0.5 * weights) * WIDTHS_S
    # Where no gap has ever been so long, the next arrival is taken to be as far away as the quiet has lasted.
    beyond = 0.5 / EDGES_S[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        hazard = np.where(reached > FEWEST, weights / exposed, 0.0)
    return np.where(reached > FEWEST, hazard, np.minimum(beyond, hazard.max(initial=0.0)) * 0.1)
