"""When and how a running stream moves to another replica. Pure; what was measured and the time are arguments.

Covers: what moving, waiting and loading elsewhere cost, and how many rounds of a move are worth it. Does not cover:
carrying it out (``carrier``), who wants streams moved (``departures``, the administrator).

A move goes in rounds, like that of a virtual machine: the target computes what exists while the source goes on; what
came meanwhile is the next round; when a round is no longer shorter than the one before, or short enough, the source is
stopped and the target goes on. The client's gap is one resume of the last round's rest.
"""

from dataclasses import dataclass
from typing import Literal

# A rest that is computed this fast is not worth another round.
SHORT_REST_S = 0.02
MAX_ROUNDS = 4
# How much the latest measurement counts.
_SMOOTHING = 0.2


@dataclass(frozen=True)
class ResumeCost:
    """Seconds to the first new token of a resumed sequence: ``per_token_s`` x tokens to compute + ``base_s``."""

    per_token_s: float = 0.001
    base_s: float = 0.05
    # Weighted means of x, y, xx and xy, of which the line is fitted; x are tokens, y seconds.
    weight: float = 0.0
    mean_x: float = 0.0
    mean_y: float = 0.0
    mean_xx: float = 0.0
    mean_xy: float = 0.0

    def seconds(self, tokens: int) -> float:
        """Estimate how long a resume takes that has so many tokens to compute."""
        return self.base_s + self.per_token_s * tokens

    def measured(self, tokens: int, seconds: float) -> "ResumeCost":
        """Return the cost with a measurement taken into account; the latest count most."""
        share = 1.0 if self.weight == 0 else _SMOOTHING
        x, y = self.mean_x + share * (tokens - self.mean_x), self.mean_y + share * (seconds - self.mean_y)
        xx = self.mean_xx + share * (tokens * tokens - self.mean_xx)
        xy = self.mean_xy + share * (tokens * seconds - self.mean_xy)
        variance = xx - x * x
        # All of one length say nothing of the slope: then only the base follows.
        slope = max(0.0, (xy - x * y) / variance) if variance > 1.0 else self.per_token_s
        return ResumeCost(slope, max(0.0, y - slope * x), self.weight + 1, x, y, xx, xy)


@dataclass(frozen=True)
class Place:
    """What a replica that doesn't have the model awake would need to."""

    queue_s: float
    missing_bytes: int
    bytes_per_s: float

    def load_s(self) -> float:
        """Return how long it takes until it serves: load = queue + bytes / bandwidth."""
        return self.queue_s + self.missing_bytes / self.bytes_per_s


@dataclass(frozen=True)
class RunningStream:
    """A stream that could make room."""

    tokens: int
    """Prompt and output, so far."""
    left_s: float
    """How long it will still take where it is; the wait, if it stays."""


@dataclass(frozen=True)
class Choice:
    """The cheapest way to serve a request whose best place is busy with others, and what each way costs."""

    way: Literal["wait", "load elsewhere", "migrate"]
    wait_s: float
    load_s: float
    migrate_s: float


def cheapest(
    streams: list[RunningStream], elsewhere: Place | None, here: Place, *, target_has_room: bool, cost: ResumeCost
) -> Choice:
    """Compare waiting for the streams here, loading the model elsewhere, and moving the streams away.

    Args:
        streams: what runs at the best place, and would have to end or move.
        elsewhere: the next best place; None if there is none.
        here: the best place, once it is free.
        target_has_room: whether another replica could take the streams.
        cost: of a resume.
    """
    wait_s = max((stream.left_s for stream in streams), default=0.0) + here.load_s()
    load_s = elsewhere.load_s() if elsewhere is not None else float("inf")
    # The target computes one prefill after the other; the source is free when the last has moved.
    moving_s = sum(cost.seconds(stream.tokens) for stream in streams)
    migrate_s = moving_s + here.load_s() if target_has_room else float("inf")
    ways: list[tuple[float, Literal["wait", "load elsewhere", "migrate"]]] = [
        (wait_s, "wait"),
        (load_s, "load elsewhere"),
        (migrate_s, "migrate"),
    ]
    # Of equals the first: what moves nothing.
    return Choice(min(ways, key=lambda way: way[0])[1], wait_s, load_s, migrate_s)


def another_round(rest_tokens: list[int], cost: ResumeCost) -> bool:
    """Tell whether the target should compute once more before the hand-over.

    Args:
        rest_tokens: how much was left to compute at the beginning of each round so far, and now.
        cost: of a resume.
    """
    now = rest_tokens[-1]
    if len(rest_tokens) > MAX_ROUNDS or cost.per_token_s * now <= SHORT_REST_S:
        return False
    return len(rest_tokens) < 2 or now < rest_tokens[-2]  # noqa: PLR2004 - there is a round before
