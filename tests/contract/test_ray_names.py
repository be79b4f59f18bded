"""Names of Ray's that are not public, and what is built on them: these fail clearly when upstream changes."""

import asyncio
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray._private.worker
import ray._raylet
from ray._private.runtime_env.context import RuntimeEnvContext
from ray.serve._private import router as serve_router
from ray.serve._private.request_router import request_router
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter

from app import builder
from deployments import router
from deployments.placements import Placements
from deployments.router import ReplicaRouter


def test_router() -> None:
    """`deployments/router.py` chooses, and learns of replicas and requests, by these."""
    assert "self._deployment_id = " in inspect.getsource(RequestRouter.__init__)
    chosen = list(inspect.signature(PowerOfTwoChoicesRequestRouter.choose_replicas).parameters)
    assert chosen == ["self", "candidate_replicas", "pending_request"]
    assert "self._pending_requests_to_fulfill" in inspect.getsource(RequestRouter.__init__)
    fulfil = inspect.getsource(RequestRouter._fulfill_next_pending_request)
    for step in ("_record_queue_wait_time(", "future.set_result(replica)", "_remove_pending_request_from_indices("):
        assert step in fulfil
    assert "request_metadata = pending_request.metadata" in inspect.getsource(RequestRouter._fulfill_pending_requests)
    assert "_active_request_router.on_request_routed(" in inspect.getsource(serve_router)
    backoff = inspect.getsource(RequestRouter._choose_replicas_with_backoff)
    assert "routing_context.should_backoff" in backoff
    assert "candidate_replicas=self._replicas_list," in backoff, "one list until there are other replicas"
    changed = re.search(r"_replicas_list(\.|\[|\s*\+)", inspect.getsource(request_router))
    assert changed is None, "which nobody changes"


def test_the_router_that_serve_makes_shares_the_placements_of_its_process() -> None:
    """Serve pickles the router's class by value, so what its own module names is copied in every other process."""
    config = RequestRouterConfig(request_router_class=builder._ROUTER)
    pickled = config.get_serialized_request_router_cls()
    subprocess.run([sys.executable, "-c", _SHARES_PLACEMENTS], input=pickled, check=True)


_SHARES_PLACEMENTS = """
import sys
from ray import cloudpickle
from deployments.placements import PLACEMENTS
router = cloudpickle.loads(sys.stdin.buffer.read())
assert router.update_replicas.__globals__["PLACEMENTS"] is PLACEMENTS
"""


def replicas(*names: str) -> list[Any]:
    return [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in names]


def pending(place: dict[str, Any]) -> Any:
    context = SimpleNamespace(should_backoff=False)
    return SimpleNamespace(args=[{"stream_id": "s", "place": place}], routing_context=context)


async def ranks(place: dict[str, Any], *there: str) -> list[set[str]]:
    """Who is asked, those first who are asked first."""
    request = pending(place)
    chosen = await ReplicaRouter.choose_replicas(object.__new__(ReplicaRouter), replicas(*there), request)
    assert request.routing_context.should_backoff, "or Serve would spin while they are full"
    return [{replica.replica_id.unique_id for replica in rank} for rank in chosen if rank]


async def test_a_wish_is_fulfilled_if_it_can_be() -> None:
    assert await ranks({"replica_id": "b", "avoid_id": "a"}, "a", "b", "c") == [{"b"}, {"c"}]
    assert await ranks({"replica_id": "b", "only": True}, "a", "b", "c") == [{"b"}]
    assert await ranks({"replica_id": "gone", "only": True}, "a", "b") == [{"a", "b"}]
    assert await ranks({"replica_id": "gone", "avoid_id": "a"}, "a", "b", "c") == [{"b", "c"}]
    assert await ranks({"avoid_id": "a"}, "a", "b") == [{"b"}]
    assert await ranks({"avoid_id": "a"}, "a") == [{"a"}]


async def test_a_replica_that_is_in_the_list_no_more_is_not_chosen() -> None:
    chooser = object.__new__(ReplicaRouter)
    for there, expected in (("abc", {"b"}), ("ac", {"a", "c"}), ("b", {"b"})):
        rank = next(
            rank for rank in await chooser.choose_replicas(replicas(*there), pending({"replica_id": "b"})) if rank
        )
        assert {replica.replica_id.unique_id for replica in rank} == expected


async def test_a_replica_goes_to_who_asked_for_it_also_among_calls_of_one_request(monkeypatch: Any) -> None:
    placements = Placements()
    monkeypatch.setattr(router, "PLACEMENTS", placements)
    loop = asyncio.get_running_loop()
    asked = [
        SimpleNamespace(
            metadata=SimpleNamespace(internal_request_id="same"),
            future=loop.create_future(),
            args=[{"stream_id": stream_id}],
        )
        for stream_id in "12"
    ]
    for request in asked:
        placements.watch(request.args[0]["stream_id"], "model", lambda: None)
    chooser: Any = object.__new__(ReplicaRouter)
    chooser._pending_requests_to_fulfill = asked
    chooser._record_queue_wait_time = chooser._remove_pending_request_from_indices = lambda _: None
    for pending_request, replica in zip(reversed(asked), replicas("b", "a"), strict=True):
        chooser._fulfill_next_pending_request(replica, pending_request.metadata)
    assert [request.future.result().replica_id.unique_id for request in asked] == ["a", "b"]
    assert [placements.replica_of(stream_id) for stream_id in "12"] == ["a", "b"]


def test_forked_worker() -> None:
    """`deployments/forked_worker.py` gives Ray another way to set a process's title, and runs the worker's program."""
    assert "ray._raylet.setproctitle(" in inspect.getsource(ray._private.worker)
    assert callable(ray._raylet.getproctitle)
    program = Path(ray._private.__file__).parent / "workers" / "default_worker.py"
    text = program.read_text()
    assert 'if __name__ == "__main__":' in text
    assert "--node-id" in text
    executed = inspect.getsource(RuntimeEnvContext.exec_worker)
    assert 'executable = ["exec", self.py_executable]' in executed
