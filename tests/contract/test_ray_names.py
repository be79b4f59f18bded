"""Names of Ray's that are not public, and what is built on them: these fail clearly when upstream changes."""

import inspect
from types import SimpleNamespace
from typing import Any

from ray.serve._private import router as serve_router
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import RequestRouter

from deployments import router
from deployments.placements import Placements
from deployments.router import ReplicaRouter


def test_router() -> None:
    """`deployments/router.py` chooses, and learns of replicas and requests, by these."""
    assert "self._deployment_id = " in inspect.getsource(RequestRouter.__init__)
    chosen = list(inspect.signature(PowerOfTwoChoicesRequestRouter.choose_replicas).parameters)
    assert chosen == ["self", "candidate_replicas", "pending_request"]
    assert "internal_request_id" in inspect.getsource(RequestRouter._fulfill_next_pending_request)
    assert "_active_request_router.on_request_routed(" in inspect.getsource(serve_router)
    assert "routing_context.should_backoff" in inspect.getsource(RequestRouter._choose_replicas_with_backoff)


def replicas(*names: str) -> list[Any]:
    return [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in names]


def pending(place: dict[str, str]) -> Any:
    context = SimpleNamespace(should_backoff=False)
    return SimpleNamespace(args=[{"stream_id": "s", "place": place}], routing_context=context)


async def names_chosen(place: dict[str, str], *there: str) -> set[str]:
    request = pending(place)
    [chosen] = await ReplicaRouter.choose_replicas(object.__new__(ReplicaRouter), replicas(*there), request)
    assert request.routing_context.should_backoff, "or Serve would spin while they are full"
    return {replica.replica_id.unique_id for replica in chosen}


async def test_a_wish_is_fulfilled_if_it_can_be() -> None:
    assert await names_chosen({"replica_id": "b", "avoid_id": "a"}, "a", "b", "c") == {"b"}
    assert await names_chosen({"replica_id": "gone", "avoid_id": "a"}, "a", "b", "c") == {"b", "c"}
    assert await names_chosen({"avoid_id": "a"}, "a", "b") == {"b"}
    assert await names_chosen({"avoid_id": "a"}, "a") == {"a"}


def test_it_says_where_requests_go(monkeypatch: Any) -> None:
    placements = Placements()
    monkeypatch.setattr(router, "PLACEMENTS", placements)
    placements.watch("s", "model", lambda: None)
    replica_id: Any = SimpleNamespace(unique_id="b")
    ReplicaRouter.on_request_routed(object.__new__(ReplicaRouter), pending({}), replica_id, None)
    assert placements.replica_of("s") == "b"
