"""A node's actor: there when a node joins, back after it was killed, gone with the application; it forks as planned."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from deployments.forked_engine import surroundings_of
from deployments.nodes import NodeKeeper
from deployments.recipe import Recipe, remember
from storage.actor import NAMESPACE, store_name
from storage.errors import SnapshotMissingError
from storage.store import StoreConfig
from tests.support.snapshot_samples import make_snapshot
from tests.support.waiting import until

APPLICATION = "nodes-test"
FORECASTER = "forecaster"
FORKED = "forking an engine of m ahead of its replica"
# Ray's waiting without an end can't be ended by a test's timeout either.
WITHIN_S = 120


class StubForecaster:
    """Wants an engine of a model for which there is no replica."""

    async def engines_ahead(self) -> list[str]:
        return ["m"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=made.address, namespace=NAMESPACE, log_to_driver=False)
    yield made
    serve.shutdown()
    ray.shutdown()
    made.shutdown()


def store_of(node_id: str) -> Any:
    try:
        return ray.get_actor(store_name(APPLICATION, node_id), NAMESPACE)
    except ValueError:
        return None


def test_every_node_has_its_store_as_long_as_the_application_lives(cluster: Cluster, tmp_path: Path) -> None:
    published = make_snapshot(tmp_path / "published", 1)
    # One machine plays all nodes, so their stores must not share directories: one after another has the lock.
    config = StoreConfig(tmp_path / "dram", 1 << 20, tmp_path / "disk", 1 << 20)
    keeper = serve.deployment(NodeKeeper, ray_actor_options={"num_cpus": 0})
    handle = serve.run(keeper.bind(config, "cpu", FORECASTER), name=APPLICATION, route_prefix=None)
    first = ray.get_runtime_context().get_node_id()
    store = until(lambda: store_of(first))
    place = ray.get(store.acquire.remote(published.id, str(tmp_path / "published")), timeout=WITHIN_S)
    assert (place.tier, place.path) == ("dram", str(tmp_path / "dram" / published.id))
    with pytest.raises(SnapshotMissingError):
        ray.get(store.acquire.remote("0" * 64, None), timeout=WITHIN_S)

    os.kill(ray.get(store.__ray_call__.remote(lambda _: os.getpid()), timeout=WITHIN_S), signal.SIGKILL)
    described = until(lambda: _described(handle, first))
    assert [tier["snapshots"][0]["id"] for tier in described.values()] == [published.id] * 2, "it found its files again"

    second = cluster.add_node(num_cpus=1)
    until(lambda: store_of(second.node_id))
    cluster.remove_node(second)
    until(lambda: list(handle.tiers.remote().result()) == [first])

    # What is forked fails, for that is how no engine is started; the actor's log is all that tells of it.
    forecaster = ray.remote(StubForecaster).options(name=f"{FORECASTER}:{APPLICATION}", num_cpus=0)  # type: ignore[attr-defined]
    wanting = forecaster.remote()
    pool = ray.get(store_of(first).pool_address.remote(), timeout=WITHIN_S)
    asyncio.run(remember(pool, Recipe("m", "key", surroundings_of(pool, "m"), b"no engine", published.id)))
    until(lambda: any(FORKED in path.read_text() for path in Path(pool.log_directory).glob("worker-*.err")))
    ray.kill(wanting)

    serve.delete(APPLICATION)
    until(lambda: store_of(first) is None)


def _described(handle: Any, node_id: str) -> Any:
    held = handle.tiers.remote().result().get(node_id, {"error": "no store"})
    return None if "error" in held else held
