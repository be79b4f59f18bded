"""Which share of a model's requests each of its adapters has lately; older requests count less and less."""

import math
from heapq import nlargest

MEMORY_S = 3600.0
"""What was asked for so long ago counts 1/e."""
MOST_TOLD = 64
MOST_KEPT = 4096
_LARGEST_EXPONENT = 500.0


class AdapterShares:
    """One model's. Weights grow with the time instead of all of them fading with it."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._sum = 0.0
        self._origin_s = 0.0
        self._largest: dict[str, float] | None = {}

    def of_model(self, at_s: float, requests: int) -> None:
        """Count requests that came for the model at ``at_s``, those for its adapters among them."""
        weight = self._weigh(at_s, requests)
        self._sum += weight

    def of_adapter(self, adapter: str, at_s: float, requests: int) -> None:
        """Count requests that came for an adapter; ``of_model`` counts them too."""
        weight = self._weigh(at_s, requests)
        self._weights[adapter] = self._weights.get(adapter, 0.0) + weight
        if len(self._weights) > MOST_KEPT:
            self._weights = dict(nlargest(MOST_KEPT // 2, self._weights.items(), key=lambda item: item[1]))

    def _weigh(self, at_s: float, requests: int) -> float:
        """Return how much requests count; where all before them weigh nothing any more, forget that."""
        self._largest = None
        exponent = (at_s - self._origin_s) / MEMORY_S
        if not exponent >= -_LARGEST_EXPONENT or math.isinf(exponent):
            # From long before all else, or of no time at all.
            return 0.0
        if exponent > _LARGEST_EXPONENT:
            self._weights, self._sum, self._origin_s, exponent = {}, 0.0, at_s, 0.0
        return requests * math.exp(exponent)

    def largest(self) -> dict[str, float]:
        """Return the shares of those that are asked for most, the largest first."""
        if self._largest is None:
            most = nlargest(MOST_TOLD, self._weights.items(), key=lambda item: item[1])
            self._largest = {name: weight / self._sum for name, weight in most if weight > 0}
        return self._largest

    def __repr__(self) -> str:
        return f"<AdapterShares of {len(self._weights)}>"
