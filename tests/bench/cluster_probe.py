"""What `cluster_replicas.py` serves: replicas with engines that need no model, heard of in one way or the other."""

import time
from typing import Any

from deployments.fake_engine import FakeEngine
from deployments.replica import EngineReplica
from deployments.residency import Limits
from deployments.router import ReplicaRouter
from deployments.types import ModelSpec

MODEL = "fake"
TOKEN_TIME_S = 0.05
SPEC = ModelSpec(MODEL, "", {"token_time_s": TOKEN_TIME_S}, awake_bytes=100)

# Who is told, in this process, that a replica has requests in hand: called with its id.
on_busy: Any = None


class FakeReplica(EngineReplica):
    """As FlashServe's own: it tells gateways of itself on their feeds."""

    def __init__(self, catalogue: Any) -> None:
        from ray import serve  # noqa: PLC0415 - where it is a replica

        replica_id = serve.get_replica_context().replica_id.unique_id
        super().__init__(catalogue, "pool", FakeEngine, Limits(10_000, 0.05, 1.0), 60.0, replica_id)

    async def __del__(self) -> None:
        await self.close()


class AskedReplica(FakeReplica):
    """As Serve has it: its controller asks each replica, and tells all routers."""

    async def record_routing_stats(self) -> dict[str, Any]:
        """See Serve."""
        return {"at_s": time.time(), "requests": self._residents.describe()[MODEL]["requests"]}


class ToldRouter(ReplicaRouter):
    """Hears what Serve's controller tells of replicas."""

    def update_replicas(self, replicas: list[Any]) -> None:
        """See Serve's router."""
        super().update_replicas(replicas)
        # Serve pickles this class with its module's names: those of the module itself are meant.
        from tests.bench import cluster_probe  # noqa: PLC0415

        for replica in replicas:
            if replica.routing_stats.get("requests"):
                cluster_probe.on_busy(replica.replica_id.unique_id)
