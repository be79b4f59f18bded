"""The deployment that owns the forecaster's actor, and tells it what is served.

Covers: creating the actor, again where Ray can't start it again, its end with the application. Does not cover: what it
does (``autoscaler.actor``). It is an actor and no deployment because Serve's controller, where the policy runs, can ask
actors without waiting for them.
"""

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.config import PoolConfig
from app.entry import Entry
from autoscaler.actor import NAMESPACE, ForecasterActor, forecaster_name
from autoscaler.config import AutoscalingConfig
from deployments.event_log import log_with
from deployments.health import check_goes_on

logger = logging.getLogger(__name__)

TELL_PERIOD_S = 2.0
ANSWER_S = 10.0


class ForecastKeeper:
    """Plain class; a Serve deployment with one replica."""

    def __init__(self, config: AutoscalingConfig, history: str, catalogue: Any, pools: list[PoolConfig]) -> None:
        """``catalogue`` is a Serve handle; ``history`` is the file in which arrivals are kept on this node."""
        self._config = config
        self._history = history
        self._catalogue = catalogue
        self._pools = {pool.name: (pool.min_replicas, pool.max_replicas, resources_of(pool)) for pool in pools}
        self._name = forecaster_name(serve.get_replica_context().app_name)
        self._entries: list[Entry] = []
        self._version: str | None = None
        self._actor: Any = None
        loop = asyncio.get_running_loop()
        self._loops = [loop.create_task(self._follow()), loop.create_task(self._keep())]

    async def check_health(self) -> None:
        """Serve's health check: raises when nobody looks after the forecaster any more; a dead one is no reason."""
        for each in self._loops:
            check_goes_on(each, "looking after the forecaster")

    async def close(self) -> None:
        """Let the forecaster write what it has and withdraw what it asked for, then end it."""
        for each in self._loops:
            each.cancel()
        if self._actor is not None:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._actor.close.remote()
            except (RayError, TimeoutError) as error:
                logger.warning("the forecaster did not end in order: %s", error)
            ray.kill(self._actor)

    async def _follow(self) -> None:
        while True:
            try:
                found = await self._catalogue.entries.remote(self._version)
            except (RayError, RayServeException) as error:
                logger.warning("the catalogue does not answer: %s", error)
                await asyncio.sleep(TELL_PERIOD_S)
                continue
            if found is not None:
                self._version, self._entries = found

    async def _keep(self) -> None:
        """Create the actor and tell it what is served, again and again: it may have been started anew meanwhile."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    if self._actor is None:
                        self._actor = await asyncio.to_thread(self._create)
                    if self._version is not None:
                        await self._actor.serves.remote(served(self._entries), self._pools)
            except (RayError, TimeoutError, ValueError) as error:
                logger.info("the forecaster does not answer: %s", error)
                self._actor = None
            await asyncio.sleep(TELL_PERIOD_S)

    def _create(self) -> Any:
        """Return the actor, which is created if there is none. Raises ValueError while its predecessor ends."""
        node_id = ray.get_runtime_context().get_node_id()
        options = {
            "name": self._name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        }
        actor = ray.remote(ForecasterActor).options(**options)
        return actor.remote(self._config.model_dump(), self._history)

    def __repr__(self) -> str:
        return f"<ForecastKeeper of {self._name}>"


class ServedForecastKeeper(ForecastKeeper):
    """Serve calls ``__del__`` by hand when it shuts a replica down, and awaits it."""

    def __init__(self, *arguments: Any) -> None:
        """As ``ForecastKeeper``."""
        log_with("ray.serve")
        super().__init__(*arguments)

    async def __del__(self) -> None:
        await self.close()


def served(entries: list[Entry]) -> dict[str, tuple[str, int]]:
    """Return by model, or tenant's own engine, its pool, and how many sequences one engine works on at once."""
    return {spec.id: (entry.pool, spec.concurrency) for entry in entries for spec in entry.engines()}


def resources_of(pool: PoolConfig) -> dict[str, float]:
    """Return what a replica of the pool asks of Ray, by Ray's names of resources."""
    resources = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
    if pool.accelerator_type is not None:
        # As Ray itself asks for a type: any node that has one has plenty of it.
        resources[f"accelerator_type:{pool.accelerator_type}"] = 0.001
    return resources
