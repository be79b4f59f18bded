"""The class that Serve's controller calls for each pool: ``autoscaling_config.policy``.

Covers: from Serve's context to the decision and back, metrics. Does not cover: the decision (``scaling``), reading the
plan (``plan_reader``). Serve pickles this module by value and imports the rest in its controller, where nothing here
may ever wait.

| metric (Ray puts ``ray_`` before it) | type | labels |
| --- | --- | --- |
| ``flashserve_scaling_replicas`` | gauge | ``pool``, ``by``: ``load``, ``forecast``, ``decided`` |
| ``flashserve_plan_age_seconds`` | gauge | ``pool``; -1 while there is no plan that can be believed |
"""

import logging
import time
from typing import Any

from ray.serve.config import AutoscalingContext
from ray.util.metrics import Gauge

from autoscaler.plan_reader import PlanReader, PoolQuestion
from autoscaler.scaling import Memory, Rules, Seen, decide_replicas, read_expected

logger = logging.getLogger(__name__)


class ForecastPolicy:
    """One pool's."""

    def __init__(self, *, forecaster: str, namespace: str, pool: str, target_ongoing: float, hold_s: float) -> None:
        """``forecaster`` is the name of the actor, to which the application's is added."""
        self._forecaster = forecaster
        self._namespace = namespace
        self._pool = pool
        self._rules = Rules(target_ongoing, hold_s)
        self._memory = Memory()
        self._reader: PlanReader | None = None
        self._said: tuple[int, str] | None = None
        self._replicas = Gauge(
            "flashserve_scaling_replicas", "Replicas that a pool should have, by what wants them.", ("pool", "by")
        )
        self._age = Gauge("flashserve_plan_age_seconds", "How old the plan is that a pool is scaled by.", ("pool",))

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """See Serve's documents of custom autoscaling policies."""
        if self._reader is None:
            name = f"{self._forecaster}:{context.app_name}"
            self._reader = PlanReader(PoolQuestion(name, self._namespace, self._pool))
        told = self._reader.latest()
        expected = None if told is None else read_expected(*told)
        seen = Seen(
            ongoing=context.total_num_requests,
            running=context.current_num_replicas,
            target=context.target_num_replicas,
            least=context.capacity_adjusted_min_replicas,
            most=context.capacity_adjusted_max_replicas,
        )
        decision = decide_replicas(seen, expected, self._memory, self._rules, time.monotonic())
        if self._said != (decision.replicas, decision.reason):
            self._said = decision.replicas, decision.reason
            logger.info("pool %s: %s", self._pool, decision)
        labels = {"pool": self._pool}
        self._replicas.set(decision.measured, labels | {"by": "load"})
        self._replicas.set(decision.floor, labels | {"by": "forecast"})
        self._replicas.set(decision.replicas, labels | {"by": "decided"})
        self._age.set(-1 if told is None or expected is None else told[1], labels)
        return decision.replicas, {}
