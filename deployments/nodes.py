"""One actor on every node of the cluster, with its snapshot store, its process pool and engines forked ahead from it.

A Serve deployment with one replica creates and owns them: so they are gone when the application is deleted, Ray starts
one again that died, and a node that joins gets its own with the next look.
"""

import asyncio
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import ray
from ray import serve
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.ahead_orders import AheadOrders
from deployments.engines_ahead import EnginesAhead
from deployments.event_log import log_with
from deployments.forked_engine import PoolAddress
from deployments.health import check_goes_on
from deployments.process_pool import ProcessPool
from deployments.start_metrics import AheadMetrics
from deployments.worker_launcher import pool_link
from storage.actor import NAMESPACE, StoreActor, StoreClient, store_name
from storage.errors import StorageError
from storage.lease import Lease, hold
from storage.store import StoreConfig

logger = logging.getLogger(__name__)

LOOK_PERIOD_S = 2.0
_ANSWER_TIMEOUT_S = 10.0


class NodeActor(StoreActor):
    """What Ray runs on a node: the snapshot store, and beside it the zygote that engines are forked from."""

    def __init__(self, config: StoreConfig, device: Literal["cpu", "gpu"], modules: tuple[str, ...] = ()) -> None:
        """``modules`` are what workers of the application import beside vLLM; without any it forks none."""
        log_with("ray")
        super().__init__(config)
        # Where Ray has this actor's own output, and so the dashboard looks for logs.
        output = Path("/proc/self/fd/1").resolve()
        link = pool_link(ray.get_runtime_context().get_node_id()) if modules else None
        logs = output.parent if output.is_file() else Path(tempfile.gettempdir())
        self._pool = ProcessPool(logs, device, modules, link)
        self._pool.run()
        self._ahead = EnginesAhead(self._pool.address, self._held, AheadMetrics().count)
        self._ahead.open()

    async def engines_ahead(self) -> dict[str, bool]:
        """See ``EnginesAhead.known``."""
        return self._ahead.known()

    async def fork_ahead(self, model_id: str) -> bool:
        """See ``EnginesAhead.fork``."""
        await self._pool.ready()
        return self._ahead.fork(model_id)

    async def _held(self, snapshot_id: str) -> tuple[Lease, Path]:
        lease = Lease(self._config.disk_dir, snapshot_id, f"an engine ahead of its replica, process {os.getpid()}")
        return lease, Path((await hold(lease, self.acquire(snapshot_id, None))).path)

    async def pool_address(self) -> PoolAddress:
        """Return where engines can be forked, once they can. Raises TimeoutError."""
        await self._pool.ready()
        return self._pool.address


class NodeClient(StoreClient):
    """The store and the process pool of this node, for one of its processes."""

    async def pool_address(self) -> PoolAddress | None:
        """Return where engines can be forked; None where the pool doesn't start."""
        try:
            return await self._call("pool_address")
        except (RayError, StorageError) as error:
            logger.warning("engines start without the process pool: %s", error)
            return None


class NodeKeeper:
    """Keeps the actors; ``tiers`` asks all of them."""

    def __init__(
        self,
        storage: StoreConfig,
        device: Literal["cpu", "gpu"],
        forecaster: str | None = None,
        modules: tuple[str, ...] = (),
    ) -> None:
        """``forecaster`` names the actor, within the application, whose plan says which engines to fork ahead.

        ``modules`` are what the application's workers import beside vLLM.
        """
        log_with("ray.serve")
        self._storage = storage
        self._device = device
        self._modules = modules
        self._application = serve.get_replica_context().app_name
        self._stores: dict[str, Any] = {}
        self._keeping = asyncio.get_running_loop().create_task(self._keep())
        self._orders: AheadOrders | None = None
        if forecaster is not None:
            self._orders = AheadOrders(f"{forecaster}:{self._application}", self._stores)
            self._orders.run()

    async def tiers(self) -> dict[str, Any]:
        """Return what is where, by node: as ``SnapshotStore.describe``, or the reason why a store doesn't answer."""
        stores = dict(self._stores)
        return dict(zip(stores, await asyncio.gather(*map(_description, stores.values())), strict=True))

    async def check_health(self) -> None:
        """Serve's health check: raises when nobody looks after the stores any more."""
        check_goes_on(self._keeping, "looking after the nodes' snapshot stores")
        if self._orders is not None:
            self._orders.check()

    async def _keep(self) -> None:
        while True:
            nodes = {node["NodeID"]: node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]}
            for gone in self._stores.keys() - nodes.keys():
                del self._stores[gone]
            for new in nodes.keys() - self._stores.keys():
                # Where gateways alone are, no engine is forked, and CUDA isn't there to be preloaded.
                self._create(new, self._device if nodes[new]["Resources"].get("GPU") else "cpu")
            await asyncio.sleep(LOOK_PERIOD_S)

    def _create(self, node: str, device: Literal["cpu", "gpu"]) -> None:
        options = {
            "name": store_name(self._application, node),
            "namespace": NAMESPACE,
            "num_cpus": 0,
            "max_restarts": -1,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        try:
            self._stores[node] = ray.remote(NodeActor).options(**options).remote(self._storage, device, self._modules)
        except ValueError as error:
            # The one of this replica's predecessor is still ending; the next look finds the name free.
            logger.info("no store on %s yet: %s", node, error)

    def __repr__(self) -> str:
        return f"<NodeKeeper {len(self._stores)} nodes>"


async def _description(store: Any) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            return await store.describe.remote()
    except (RayError, TimeoutError) as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
