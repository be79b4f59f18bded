"""Whom a request is for, on its way through the gateway.

The door says so; vLLM's classes lie between the layer and the engine client and know nothing of it, so there it is told
through the context of the task.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from app.tenants import EVERYTHING, Reach, Tenant


def _nothing(_: int) -> None:
    pass


@dataclass(frozen=True)
class Caller:
    """A tenant with one request; no tenant where no keys are configured. ``spend`` takes the tokens it costs."""

    tenant: Tenant | None = None
    spend: Callable[[int], None] = _nothing

    @property
    def name(self) -> str:
        """The tenant's; empty where there are none."""
        return self.tenant.name if self.tenant is not None else ""

    @property
    def weight(self) -> float:
        """Its share when there is not enough for all."""
        return self.tenant.weight if self.tenant is not None else 1.0

    @property
    def is_admin(self) -> bool:
        """Whether it may administer the service and sees everything."""
        return self.tenant is None or self.tenant.is_admin

    @property
    def reach(self) -> Reach:
        """What it may ask for."""
        if self.tenant is None:
            return EVERYTHING
        return replace(EVERYTHING, tenant=self.tenant.name) if self.tenant.is_admin else self.tenant.reach

    def cache_salt(self, own: str | None) -> str | None:
        """Return the salt of its prefix cache: its own choice within what is the tenant's alone."""
        # Names hold no colon, so no choice leads to another tenant's.
        return own if self.tenant is None else f"{self.tenant.name}:{own or ''}"


ANYBODY = Caller()
_CURRENT: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


@contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """Have ``current_caller`` return ``caller`` within, also in tasks that begin there."""
    token = _CURRENT.set(caller)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_caller() -> Caller:
    """Return whom the work of this task is for."""
    return _CURRENT.get()
