"""What crosses the forecaster's border as builtin types: what replicas say of themselves, and what they are told.

``deployments.plan_follower`` has the other end of it; neither imports the other.
"""

from typing import Any

import msgspec

from autoscaler.errors import ReportError
from autoscaler.types import Count

LAYER_OF = {"awake": 0, "starting": 0, "waking": 0, "sleeping": 1, "asleep": 1}
"""Layers of the states of engines; every other one holds nothing and is the coldest."""
COLDEST = 2
MOST = 2**40
"""No second has more requests or tokens of a series."""


class EngineReport(msgspec.Struct, frozen=True):
    """One engine of a replica.

    ``served`` requests ended since the last report, each in ``served_s`` on the mean once it was admitted.
    """

    state: str
    in_hand: int = 0
    waiting: int = 0
    wake_s: float = 0.3
    start_s: float = 10.0
    awake_bytes: int = 0
    asleep_bytes: int = 0
    served: int = 0
    served_s: float = 0.0

    @property
    def layer(self) -> int:
        """Where it is, or will be once it has changed."""
        return LAYER_OF.get(self.state, COLDEST)

    @property
    def is_starting(self) -> bool:
        """Whether it is on its way to being awake."""
        return self.state in {"starting", "waking"}


class ReplicaReport(msgspec.Struct, frozen=True):
    """A replica with its engines by model. ``budget_bytes`` is None without a limit, ``room_bytes`` what is free.

    ``prewarms`` are outcomes since the replica began: how many were used, late, wasted, and what the wasted held. With
    ``is_change`` only those engines are told that have changed since the report before, and in ``gone`` the models that
    are no longer there.
    """

    replica_id: str
    pool: str
    engines: dict[str, EngineReport]
    budget_bytes: int | None = None
    room_bytes: int = 0
    prewarms: dict[str, float] = {}
    is_change: bool = False
    gone: list[str] = []


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a replica is told of one model, relative to the moment at which it hears it.

    ``expected_per_s`` is the chance of being asked for in the next second; it should be awake from ``in_s`` for
    ``for_s``, which is zero if it need not be. ``adapters`` are the shares that its adapters have of its requests, by
    qualified name; those asked for most.
    """

    expected_per_s: float
    in_s: float
    for_s: float
    reason: str
    adapters: dict[str, float] = {}


def read_report(body: Any) -> ReplicaReport:
    """Check a report. Raises ReportError."""
    try:
        return msgspec.convert(body, ReplicaReport)
    except (msgspec.ValidationError, TypeError) as error:
        raise ReportError(str(error)) from error


def read_counts(rows: Any) -> list[Count]:
    """Check pushed counts, rows of (series, at_s, requests, tokens). Raises ReportError."""
    try:
        found = msgspec.convert(rows, list[tuple[str, float, int, int]])
    except (msgspec.ValidationError, TypeError) as error:
        raise ReportError(str(error)) from error
    for series, _, requests, tokens in found:
        if not series or not 0 <= requests < MOST or not 0 <= tokens < MOST:
            raise ReportError(f"{requests} requests and {tokens} tokens for '{series}'")
    return [Count(*row) for row in found]
