"""The gateway's door: whose a request is, and whether it may come in now. HTTP and handle calls pass through it alike.

Covers: keys, administrators, limits, counting. Does not cover: HTTP (``guard``), which models a caller reaches
(``openai_layer``), who waits for whom (``fair_queue``).
"""

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from app.callers import ANYBODY, Caller
from app.errors import KeyRefusedError, LimitReachedError, NotPermittedError
from app.key_ring import KeyRing
from app.tenant_metrics import TenantMetrics
from app.tenants import Allowance, Bucket, Tenant


class Door:
    """One gateway's, where keys are configured (``ring``) or not (None); one event loop."""

    def __init__(self, ring: KeyRing | None, *, gateways: int, metrics: TenantMetrics | None = None) -> None:
        """``gateways`` is among how many each limit is divided."""
        self._ring = ring
        self._gateways = gateways
        self._metrics = metrics
        self._allowances: dict[str, Allowance] = {}

    @property
    def is_open(self) -> bool:
        """Whether there are no keys."""
        return self._ring is None

    def run(self) -> None:
        """Begin to follow the file of keys."""
        if self._ring is not None:
            self._ring.run()

    def check(self) -> None:
        """Raise what has ended the following, if anything has."""
        if self._ring is not None:
            self._ring.check()

    def close(self) -> None:
        """Follow the file no longer."""
        if self._ring is not None:
            self._ring.close()

    async def identify(self, key: str | None) -> Caller:
        """Return whose a key is; any will do, or none, where there are none.

        Raises:
            KeyRefusedError, KeysUnavailableError.
        """
        if self._ring is None:
            return ANYBODY
        if key is None:
            raise KeyRefusedError(was_given=False)
        tenant = await self._ring.owner(key)
        return Caller(tenant, lambda tokens: self._spend(tenant, tokens))

    @contextmanager
    def visit(self, caller: Caller) -> Iterator[None]:
        """Let a request in for as long as it takes.

        Raises:
            LimitReachedError: the tenant is over a limit.
        """
        if caller.tenant is None:
            yield
            return
        allowance = self._allowance(caller.tenant)
        now_s = time.monotonic()
        refusal = allowance.refusal(now_s)
        if self._metrics is not None:
            self._metrics.asked(caller.name, "admitted" if refusal is None else refusal.limit)
        if refusal is not None:
            raise LimitReachedError(refusal.limit, refusal.retry_after_s)
        allowance.enter(now_s)
        try:
            yield
        finally:
            allowance.leave()

    def headers(self, caller: Caller) -> dict[str, str]:
        """Return what OpenAI's API says of limits, about those there are."""
        if caller.tenant is None:
            return {}
        allowance, now_s = self._allowances.get(caller.name), time.monotonic()
        if allowance is None:
            return {}
        return _headers("requests", allowance.requests, now_s) | _headers("tokens", allowance.tokens, now_s)

    def tenants(self) -> Collection[str]:
        """Return who has keys; nobody where there are none. Raises KeysUnavailableError."""
        return () if self._ring is None else self._ring.tenants().keys()

    def describe(self) -> dict[str, Any]:
        """Return the tenants with what is left of their limits here, and what is wrong with the file of keys."""
        if self._ring is None:
            return {"problem": None, "tenants": {}}
        tenants = {name: self._described(tenant) for name, tenant in self._ring.tenants().items()}
        return {"problem": self._ring.problem, "tenants": tenants}

    def _described(self, tenant: Tenant) -> dict[str, Any]:
        allowance, now_s = self._allowance(tenant), time.monotonic()
        left = {
            name: None if bucket is None else math.floor(bucket.at(now_s).level)
            for name, bucket in (("requests_left", allowance.requests), ("tokens_left", allowance.tokens))
        }
        return {"admin": tenant.is_admin, "weight": tenant.weight, "requests_in_hand": allowance.in_hand} | left

    def _allowance(self, tenant: Tenant) -> Allowance:
        quota, now_s = tenant.quota.part(self._gateways), time.monotonic()
        allowance = self._allowances.get(tenant.name)
        if allowance is None:
            allowance = self._allowances[tenant.name] = Allowance(quota, now_s)
        elif allowance.quota != quota:
            # The file has changed; what was spent stays spent.
            allowance.set(quota, now_s)
        return allowance

    def _spend(self, tenant: Tenant, tokens: int) -> None:
        # As it is by now: the file may have changed since the request came in.
        self._allowances[tenant.name].spend(tokens, time.monotonic())
        if self._metrics is not None:
            self._metrics.spent(tenant.name, tokens)

    def __repr__(self) -> str:
        return f"<Door {'without keys' if self._ring is None else repr(self._ring)}>"


def check_admin(caller: Caller) -> None:
    """Let administrators pass. Raises NotPermittedError."""
    if not caller.is_admin:
        raise NotPermittedError("This needs an administrator's API key.")


def _headers(name: str, bucket: Bucket | None, now_s: float) -> dict[str, str]:
    if bucket is None:
        return {}
    return {
        f"x-ratelimit-limit-{name}": str(max(1, round(bucket.per_minute))),
        f"x-ratelimit-remaining-{name}": str(max(0, math.floor(bucket.at(now_s).level))),
        f"x-ratelimit-reset-{name}": _span(bucket.until_full_s(now_s)),
    }


def _span(seconds: float) -> str:
    """Return a span of time as OpenAI writes it: ``6m0s``, ``1.2s``, ``20ms``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest_s = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest_s:.0f}s" if minutes else f"{rest_s:.1f}s"
