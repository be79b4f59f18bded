"""One snapshot store on every node of the cluster: a Serve deployment with one replica that creates and owns them.

Owned by this replica, they are gone when the application is deleted, and Ray starts one again that died. A node that
joins gets its store with the next look.
"""

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from storage.actor import NAMESPACE, StoreActor, store_name
from storage.store import StoreConfig

logger = logging.getLogger(__name__)

LOOK_PERIOD_S = 2.0
_ANSWER_TIMEOUT_S = 10.0


class NodeKeeper:
    """Keeps the stores; ``describe`` asks all of them."""

    def __init__(self, storage: StoreConfig) -> None:
        self._storage = storage
        self._application = serve.get_replica_context().app_name
        self._stores: dict[str, Any] = {}
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def tiers(self) -> dict[str, Any]:
        """Return what is where, by node: as ``SnapshotStore.describe``, or the reason why a store doesn't answer."""
        nodes = list(self._stores)
        return dict(zip(nodes, await asyncio.gather(*(self._describe(node) for node in nodes)), strict=True))

    async def check_health(self) -> None:
        """Serve's health check: raises when nobody looks after the stores any more."""
        if self._keeping.done():
            self._keeping.result()

    async def _describe(self, node: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                return await self._stores[node].describe.remote()
        except (RayError, TimeoutError) as error:
            return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}

    async def _keep(self) -> None:
        while True:
            nodes = {node["NodeID"] for node in await asyncio.to_thread(ray.nodes) if node["Alive"]}
            for gone in self._stores.keys() - nodes:
                del self._stores[gone]
            for new in nodes - self._stores.keys():
                self._create(new)
            await asyncio.sleep(LOOK_PERIOD_S)

    def _create(self, node: str) -> None:
        options = {
            "name": store_name(self._application, node),
            "namespace": NAMESPACE,
            "num_cpus": 0,
            "max_restarts": -1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        try:
            self._stores[node] = ray.remote(StoreActor).options(**options).remote(self._storage)
        except ValueError as error:
            # The one of this replica's predecessor is still ending; the next look finds the name free.
            logger.info("no store on %s yet: %s", node, error)

    def __repr__(self) -> str:
        return f"<NodeKeeper {len(self._stores)} nodes>"
