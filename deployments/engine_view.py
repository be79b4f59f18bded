"""An engine as the residency decision sees it: plain data, and what follows from it alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["cold", "starting", "awake", "sleeping", "asleep", "waking", "stopping", "failed"]


@dataclass(frozen=True)
class Expectation:
    """What a plan says of a model that nobody has asked anything else of; times are the replica's own.

    ``expected_per_s`` is the chance of being asked for in the next second; it should be awake from ``from_s`` until
    ``until_s``, which are the same if it need not be. ``adapters`` are the shares that its adapters have of its
    requests, by qualified name; those asked for most.
    """

    expected_per_s: float
    from_s: float
    until_s: float
    reason: str
    adapters: Mapping[str, float] = field(default_factory=dict)

    def is_due(self, now_s: float) -> bool:
        """Tell whether it should be awake now."""
        return self.from_s <= now_s < self.until_s


@dataclass(frozen=True)
class EngineView:
    """One engine at one moment.

    A failed engine holds nothing and gets nothing; whoever supervises it answers its requests.
    """

    model_id: str
    state: State
    awake_bytes: int
    """Held on the device from the first moment of a start or wake to the end of falling asleep."""
    asleep_bytes: int
    """Still held on the device when asleep: context, graphs."""
    wake_s: float
    start_s: float
    """Estimates of how long it takes until the engine serves, asleep and cold."""
    ttft_slo_s: float
    keep_awake_s: float
    """Idle time after which the engine sleeps."""
    last_used_s: float
    """When a request last came to the engine or ended there."""
    running: int = 0
    """Requests in the engine's hands, whether it computes them or queues them itself."""
    first_token_s: float = 0.0
    """From when it is awake until all who wait for it have a first token, beside the engines that are at work now."""
    oldest_waiting_since_s: float | None = None
    """Arrival of the oldest request held back until the engine is awake and not draining; None when there is none."""
    woken_at_s: float | None = None
    """When the engine last became awake, from asleep or cold."""
    draining: bool = False
    """Whether the last decision drained it; without it, two candidates could take turns and neither get empty."""
    rate_per_s: float | None = None
    """Forecast of its requests; None when there is none."""
    keep_awake_until_s: float | None = None
    """Asked for by a request's ``keep_alive``, an operator or a plan: until then the engine doesn't sleep for being
    idle, and wakes if there is free room."""
    keep_asleep_s: float | None = None
    """Unused time after which an asleep engine stops; None for never."""
    pinned: bool = False
    """Whether it is to be awake always."""

    @property
    def held_bytes(self) -> int:
        """What the device budget is charged with."""
        if self.state in ("starting", "awake", "sleeping", "waking"):
            return self.awake_bytes
        return self.asleep_bytes if self.state in ("asleep", "stopping") else 0

    @property
    def resting_bytes(self) -> int:
        """What it holds once it sleeps, if it is to stay at all."""
        return 0 if self.state in ("cold", "failed", "stopping") else self.asleep_bytes

    @property
    def freed_bytes(self) -> int:
        """What one step down frees: sleep, or stop if it sleeps already."""
        return self.asleep_bytes if self.state in ("asleep", "stopping") else self.awake_bytes - self.asleep_bytes

    @property
    def resident_since_s(self) -> float:
        """When its turn began; long ago if nobody knows."""
        return -math.inf if self.woken_at_s is None else self.woken_at_s

    @property
    def idle_since_s(self) -> float:
        """When it was last useful, or became so."""
        return max(self.last_used_s, self.resident_since_s)

    @property
    def unused(self) -> bool:
        """Whether nobody has or waits for an answer of it."""
        return self.running == 0 and self.oldest_waiting_since_s is None

    @property
    def empty(self) -> bool:
        """Whether it can be put to sleep: what waits for a draining engine waits for its next turn."""
        return self.state == "awake" and self.running == 0 and (self.draining or self.unused)

    @property
    def owes_batch(self) -> bool:
        """Whether requests that it was woken for, or that keep it from being empty, are about to be handed to it."""
        if self.oldest_waiting_since_s is None or self.draining:
            return False
        return self.running == 0 or self.oldest_waiting_since_s <= self.resident_since_s

    def wanted(self, now_s: float) -> bool:
        """Whether it should be awake."""
        kept = self.keep_awake_until_s is not None and self.keep_awake_until_s > now_s
        return self.oldest_waiting_since_s is not None or self.pinned or kept

    def lost_per_byte(self, now_s: float) -> float:
        """Return the expected seconds of waiting, a second and a freed byte, that one step down costs.

        Rate x cost / size as in FaasCache (Fuerst and Sharma, ASPLOS 2021), the cost being the waiting. Without a
        forecast, the rate is one request in the time since the last.
        """
        rate_per_s = self.rate_per_s
        if rate_per_s is None:
            rate_per_s = 1 / max(1.0, now_s - self.idle_since_s)
        waiting_s = max(0.0, self.start_s - self.wake_s) if self.state == "asleep" else self.wake_s
        return rate_per_s * waiting_s / max(1, self.freed_bytes)


def room_bytes(views: Sequence[EngineView], budget_bytes: int) -> int:
    """Return what is free of a device's budget, or held by engines that are awake and not used."""
    idle_bytes = sum(view.freed_bytes for view in views if view.empty and not view.pinned)
    return budget_bytes - sum(view.held_bytes for view in views) + idle_bytes
