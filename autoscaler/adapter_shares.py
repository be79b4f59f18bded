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

    def came(self, adapter: str | None, at_s: float, requests: int) -> None:
        """Count requests for an adapter, or None for the model itself, which came at ``at_s``."""
        if adapter is not None:
            self.of_adapter(adapter, at_s, requests)
        self.of_all(at_s, requests)

    def of_all(self, at_s: float, requests: int) -> None:
        """Count requests of the model, those for its adapters among them."""
        weight = self._weight(at_s, requests)
        self._sum += weight

    def of_adapter(self, adapter: str, at_s: float, requests: int) -> None:
        """Count requests for an adapter that are counted among all by themselves."""
        weight = self._weight(at_s, requests)
        self._weights[adapter] = self._weights.get(adapter, 0.0) + weight
        if len(self._weights) > MOST_KEPT:
            self._weights = dict(nlargest(MOST_KEPT // 2, self._weights.items(), key=lambda item: item[1]))

    def _weight(self, at_s: float, requests: int) -> float:
        self._largest = None
        if not math.isfinite(at_s):
            return 0.0
        exponent = (at_s - self._origin_s) / MEMORY_S
        if exponent < -_LARGEST_EXPONENT:
            # From long before all else.
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
