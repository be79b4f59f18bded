"""Who may use what, and what is left of their limits: functions of plain data and ``now_s``.

Covers: what a tenant reaches, its limits and how much of them is spent. Does not cover: keys (``api_keys``), turning
anybody away (``door``), who waits for whom (``fair_queue``).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from app.names import Target

# It stands before slashes and colons, and behind an @.
TENANT_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
# A limit on requests or tokens may be used up at once, and comes back evenly within this time.
MINUTE_S = 60.0


@dataclass(frozen=True)
class Reach:
    """What may be asked for. None stands for everything.

    Adapters are named as requests name them, ``adapter`` or ``model:adapter``; ``model:*`` is every one of a model, and
    None every one of the models that are reached. That is said of the operator's; of tenants' own, ``tenant`` reaches
    its own, and nobody another's but who reaches ``everything``.
    """

    models: frozenset[str] | None = frozenset()
    adapters: frozenset[str] | None = frozenset()
    tenant: str = ""
    everything: bool = False

    def holds(self, target: Target) -> bool:
        """Tell whether a model, or an adapter on it, may be asked for."""
        model_id, adapter_id = target.model_id, target.adapter_id
        has_model = self.models is None or model_id in self.models
        if target.owner is not None:
            return self.everything or target.owner == self.tenant
        if adapter_id is None:
            return has_model
        if self.adapters is None:
            return has_model
        return not self.adapters.isdisjoint({adapter_id, f"{model_id}:{adapter_id}", f"{model_id}:*"})


EVERYTHING = Reach(None, None, everything=True)


@dataclass(frozen=True)
class Quota:
    """Limits; None where there is none."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrent_requests: int | None = None

    def part(self, gateways: int) -> "Quota":
        """Return one gateway's part of it; each may have one request in hand, however many they are."""
        concurrent = self.max_concurrent_requests
        return Quota(
            _divided(self.requests_per_minute, gateways),
            _divided(self.tokens_per_minute, gateways),
            None if concurrent is None else max(1, concurrent // gateways),
        )


def _divided(limit: float | None, by: int) -> float | None:
    return None if limit is None else limit / by


@dataclass(frozen=True)
class Tenant:
    """Somebody with keys. ``weight`` is their share when there is not enough for all."""

    name: str
    reach: Reach = field(default_factory=Reach)
    quota: Quota = field(default_factory=Quota)
    weight: float = 1.0
    is_admin: bool = False


NOBODY = Tenant("")


@dataclass(frozen=True)
class Bucket:
    """What is left of a limit: full after a minute without use, below zero when more was used than there was."""

    per_minute: float
    level: float
    at_s: float

    @classmethod
    def full(cls, per_minute: float, now_s: float) -> "Bucket":
        """Return one that nothing was taken from."""
        return cls(per_minute, _capacity(per_minute), now_s)

    def at(self, now_s: float) -> "Bucket":
        """Return what it is by ``now_s``."""
        gained = max(0.0, now_s - self.at_s) * self.per_minute / MINUTE_S
        return replace(self, level=min(_capacity(self.per_minute), self.level + gained), at_s=max(now_s, self.at_s))

    def less(self, amount: float, now_s: float) -> "Bucket":
        """Return it after ``amount`` was taken."""
        now = self.at(now_s)
        return replace(now, level=now.level - amount)

    def resized(self, per_minute: float, now_s: float) -> "Bucket":
        """Return it under another limit: what was spent stays spent."""
        now = self.at(now_s)
        spent = _capacity(self.per_minute) - now.level
        return Bucket(per_minute, _capacity(per_minute) - spent, now.at_s)

    def until_s(self, level: float, now_s: float) -> float:
        """Return in how many seconds it holds ``level``, at most what it can hold."""
        missing = min(level, _capacity(self.per_minute)) - self.at(now_s).level
        return max(0.0, missing) * MINUTE_S / self.per_minute

    def until_full_s(self, now_s: float) -> float:
        """Return in how many seconds it is full."""
        return self.until_s(math.inf, now_s)


def _capacity(per_minute: float) -> float:
    # Less than one request a minute is still one request now and then.
    return max(1.0, per_minute)


LimitName = Literal["requests", "tokens", "concurrent"]


@dataclass(frozen=True)
class Refusal:
    """Which limit a request is over, and when it is worth asking again."""

    limit: LimitName
    retry_after_s: float


class Allowance:
    """What is left of one tenant's limits; ``now_s`` is of any clock that doesn't go back."""

    # Nobody announces when another request will end.
    CONCURRENT_RETRY_S = 1.0

    def __init__(self, quota: Quota, now_s: float) -> None:
        self.quota = Quota()
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.in_hand = 0
        self.set(quota, now_s)

    def set(self, quota: Quota, now_s: float) -> None:
        """Go by these limits from now on; what was spent stays spent."""
        self.quota = quota
        self.requests = _resized(self.requests, quota.requests_per_minute, now_s)
        self.tokens = _resized(self.tokens, quota.tokens_per_minute, now_s)

    def refusal(self, now_s: float) -> Refusal | None:
        """Return why there can be no request now, with the limit that takes longest; None if there can."""
        found = []
        if self.requests is not None and (wait_s := self.requests.until_s(1.0, now_s)) > 0:
            found.append(Refusal("requests", wait_s))
        # What a request will take isn't known before: whoever has anything left may ask, and may overdraw.
        if self.tokens is not None and (wait_s := self.tokens.until_s(1.0, now_s)) > 0:
            found.append(Refusal("tokens", wait_s))
        limit = self.quota.max_concurrent_requests
        if limit is not None and self.in_hand >= limit:
            found.append(Refusal("concurrent", self.CONCURRENT_RETRY_S))
        return max(found, key=lambda refusal: refusal.retry_after_s, default=None)

    def enter(self, now_s: float) -> None:
        """Count a request that begins."""
        self.in_hand += 1
        if self.requests is not None:
            self.requests = self.requests.less(1.0, now_s)

    def leave(self) -> None:
        """Count a request's end."""
        self.in_hand -= 1

    def spend(self, tokens: int, now_s: float) -> None:
        """Count tokens, read or written."""
        if self.tokens is not None:
            self.tokens = self.tokens.less(tokens, now_s)

    def __repr__(self) -> str:
        return f"<Allowance {self.in_hand} in hand, {self.requests!r}, {self.tokens!r}>"


def _resized(bucket: Bucket | None, per_minute: float | None, now_s: float) -> Bucket | None:
    if per_minute is None:
        return None
    return Bucket.full(per_minute, now_s) if bucket is None else bucket.resized(per_minute, now_s)
