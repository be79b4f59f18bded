"""What became of engines that were made ready ahead of requests: used, too late, or for nothing.

Plain counting, fed by ``residents``; as a Ray metric ``flashserve_prewarms_total`` with the labels ``model`` and
``outcome``: ``used`` was awake when it was asked for, ``late`` still on its way, ``wasted`` put down unasked.
"""

from collections.abc import Callable
from typing import Literal

Outcome = Literal["used", "late", "wasted"]


class Prewarms:
    """One replica's; times are of one clock, in seconds."""

    def __init__(self) -> None:
        self.tell: Callable[[str, Outcome], None] = lambda _model_id, _outcome: None
        """Called with every outcome."""
        self._since_s: dict[str, float] = {}
        self._counts: dict[Outcome, int] = {"used": 0, "late": 0, "wasted": 0}
        self._wasted_s = 0.0

    def began(self, model_id: str, now_s: float) -> None:
        """An engine starts or wakes, and nobody waits for it."""
        self._since_s.setdefault(model_id, now_s)

    def asked(self, model_id: str, *, awake: bool) -> None:
        """A request came for the model."""
        if self._since_s.pop(model_id, None) is not None:
            self._ended(model_id, "used" if awake else "late")

    def put_down(self, model_id: str, now_s: float) -> None:
        """The engine sleeps or stops, or has failed."""
        since_s = self._since_s.pop(model_id, None)
        if since_s is not None:
            self._wasted_s += now_s - since_s
            self._ended(model_id, "wasted")

    def counts(self) -> dict[str, float]:
        """Return how often each outcome was, and the seconds for which wasted ones were awake."""
        return {"wasted_s": self._wasted_s} | {str(outcome): float(number) for outcome, number in self._counts.items()}

    def _ended(self, model_id: str, outcome: Outcome) -> None:
        self._counts[outcome] += 1
        self.tell(model_id, outcome)

    def __repr__(self) -> str:
        return f"<Prewarms {self._counts}, {len(self._since_s)} open>"
