"""Serve's request router for engine replicas: power of two choices, unless a request says where it wants to go.

Covers: wishes of requests (``Place``), telling ``placements`` where requests go and which replicas there are. Does not
cover: estimates of where a request would be served soonest.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from deployments.placements import PLACEMENTS
from deployments.types import Place

Replica = TypeVar("Replica")


class ReplicaRouter(PowerOfTwoChoicesRequestRouter):
    """Runs in the gateway, in its event loop."""

    _indexed: list[RunningReplica] | None = None
    _by_id: Mapping[str, RunningReplica] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """See Serve's router; a wish that can't be fulfilled is none."""
        place = _place(pending_request)
        if pending_request is None or place is None:
            return await super().choose_replicas(candidate_replicas, pending_request)
        # Without it, Serve tries again without a pause.
        pending_request.routing_context.should_backoff = True
        wished = self._index(candidate_replicas).get(place.get("replica_id") or "")
        wanted = [] if wished is None else [wished]
        if wanted and place.get("only"):
            return [wanted]
        # In this order: who is wished for may have all it can take.
        return [wanted, two_of(candidate_replicas, {place.get("avoid_id"), *map(_id, wanted)}, _id)]

    def _index(self, replicas: list[RunningReplica]) -> Mapping[str, RunningReplica]:
        """Return replicas by id; Serve gives the same list until there are others."""
        if self._indexed is not replicas:
            self._indexed, self._by_id = replicas, {_id(replica): replica for replica in replicas}
        return self._by_id

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """See Serve's router."""
        super().update_replicas(replicas)
        PLACEMENTS.replicas(str(self._deployment_id), [_id(replica) for replica in replicas])

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        # Serve's own gives the replica to whoever has waited longest, which need not be who asked for this one. Nor
        # do ids tell: the calls that one request makes share theirs.
        for pending in self._pending_requests_to_fulfill:
            if pending.metadata is request_metadata and not pending.future.done():
                self._record_queue_wait_time(pending)
                # Here and not in ``on_request_routed``: over gRPC that comes with the end of the call.
                _tell(pending, replica)
                pending.future.set_result(replica)
                self._remove_pending_request_from_indices(pending)
                return


def two_of(
    replicas: Sequence[Replica], without: Collection[str | None], id_of: Callable[[Replica], str]
) -> list[Replica]:
    """Return two replicas by chance, or as many as there are, ``without`` those unless there are no others.

    However many there are, it takes no longer: so many are drawn that two are left when all excluded ones are among
    them.
    """
    drawn = random.sample(replicas, min(len(replicas), len(without) + 2))
    return ([replica for replica in drawn if id_of(replica) not in without] or drawn)[:2]


def _tell(pending_request: PendingRequest, replica: RunningReplica) -> None:
    ask = pending_request.args[0] if pending_request.args else None
    if isinstance(ask, dict) and "stream_id" in ask:
        PLACEMENTS.placed(ask["stream_id"], _id(replica))


def _place(pending_request: PendingRequest | None) -> Place | None:
    ask = pending_request.args[0] if pending_request is not None and pending_request.args else None
    return ask.get("place") if isinstance(ask, dict) else None


def _id(replica: RunningReplica) -> str:
    return replica.replica_id.unique_id
