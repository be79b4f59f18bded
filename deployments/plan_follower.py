"""A replica's end of the plan: what it tells the forecaster each second, and what it is told to expect.

Covers: asking a named actor without ever waiting for it, expecting nothing when it is silent. Does not cover: the plan
(``autoscaler``, which this package doesn't import: both sides speak builtin types), carrying it out (``residents``).
"""

import asyncio
import logging
import math
import time
from typing import Any

import ray
from ray.exceptions import RayError

from deployments.engine_view import EngineView, Expectation
from deployments.residents import Residents

logger = logging.getLogger(__name__)

NAMESPACE = "flashserve"
PERIOD_S = 1.0
ANSWER_S = 3.0
SILENT_S = 10.0
"""Without an answer for so long, nothing is expected any more: the replica goes by requests alone."""


class PlanFollower:
    """One replica's; one event loop. ``run`` first."""

    def __init__(self, forecaster: str, pool: str, replica_id: str, residents: Residents) -> None:
        """``forecaster`` is the name of the actor."""
        self._name = forecaster
        self._pool = pool
        self._replica_id = replica_id
        self._residents = residents
        self._actor: Any = None
        self._heard_s = -math.inf
        # Engines as they were told last; empty if what was told may not have arrived.
        self._told: dict[str, dict[str, Any]] = {}
        self._following: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin to tell and to follow."""
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Follow no longer, and tell the forecaster that this replica ends, unless it doesn't listen."""
        if self._following is None:
            return
        self._following.cancel()
        await asyncio.wait([self._following])
        if self._actor is not None:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._actor.leave.remote(self._replica_id)
            except (RayError, TimeoutError) as error:
                logger.info("the forecaster doesn't hear that a replica ends: %s", error)

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    self.take(await self._ask(self.report()), time.monotonic())
            except (RayError, ValueError, TimeoutError) as error:
                self._actor, self._told = None, {}
                logger.debug("the forecaster does not answer: %s", error)
            except Exception:
                # Nonsense is as good as nothing.
                self._told = {}
                logger.exception("the forecaster's answer can't be used")
            if time.monotonic() - self._heard_s > SILENT_S:
                self._residents.expect({})
            await asyncio.sleep(PERIOD_S)

    async def _ask(self, report: dict[str, Any]) -> dict[str, Any]:
        if self._actor is None:
            self._actor = await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
        return await self._actor.hear.remote(report)

    def take(self, orders: dict[str, Any], now_s: float) -> None:
        """Expect what is told. Raises KeyError, TypeError or ValueError, with nothing changed, if that is nonsense."""
        expected = {model_id: read_order(order, now_s) for model_id, order in orders.items()}
        self._heard_s = now_s
        self._residents.expect(expected)

    def report(self) -> dict[str, Any]:
        """Return what the forecaster is told: engines with state, use and times, those that changed since last time.

        All of them the first time, and after an answer that didn't come.
        """
        served = self._residents.take_served()
        described = self._residents.describe()
        limits = self._residents.limits
        engines = {
            view.model_id: _engine(view, described[view.model_id]["waiting"], served.get(view.model_id, (0, 0.0)))
            for view in self._residents.views()
        }
        told, self._told = self._told, engines
        return {
            "replica_id": self._replica_id,
            "pool": self._pool,
            # What was served is told once, also if it is as much as the second before.
            "engines": {key: each for key, each in engines.items() if each["served"] or each != told.get(key)},
            "is_change": bool(told),
            "gone": [model_id for model_id in told if model_id not in engines],
            "budget_bytes": limits.budget_bytes if limits.is_limited else None,
            "room_bytes": max(0, self._residents.room_bytes()) if limits.is_limited else 0,
            "prewarms": self._residents.prewarms.counts(),
        }

    def __repr__(self) -> str:
        return f"<PlanFollower of {self._name}>"


def read_order(order: dict[str, Any], now_s: float) -> Expectation:
    """Check an order and put it on this process's clock. Raises KeyError, TypeError or ValueError."""
    numbers = [float(order[key]) for key in ("expected_per_s", "in_s", "for_s")]
    adapters = {str(name): float(share) for name, share in order.get("adapters", {}).items()}
    if not all(math.isfinite(number) and number >= 0 for number in (*numbers, *adapters.values())):
        raise ValueError(f"an order of {order!r}")
    expected_per_s, in_s, for_s = numbers
    return Expectation(expected_per_s, now_s + in_s, now_s + in_s + for_s, str(order["reason"]), adapters)


def _engine(view: EngineView, waiting: int, served: tuple[int, float]) -> dict[str, Any]:
    return {
        "state": view.state,
        "in_hand": view.running,
        "waiting": waiting,
        "wake_s": view.wake_s,
        "start_s": view.start_s,
        "awake_bytes": view.awake_bytes,
        "asleep_bytes": view.asleep_bytes,
        "served": served[0],
        "served_s": served[1],
    }
