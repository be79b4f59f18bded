"""Serve scales a deployment by the policy: by the plan ahead, by load without it, to nothing and back. No engines."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from app.builder import scaling_of
from app.config import PoolConfig
from autoscaler.actor import NAMESPACE, forecaster_name
from autoscaler.config import AutoscalingConfig
from tests.support.waiting import until

APPLICATION = "scaling-test"
# Ray's waiting without an end can't be ended by a test's timeout either.
WITHIN_S = 60


class StubForecaster:
    """Says what it is told to say of every pool, or nothing at all."""

    def __init__(self) -> None:
        self._need = 0
        self._hangs = False

    async def say(self, need: int, *, hang: bool = False) -> None:
        self._need, self._hangs = need, hang

    async def pool_plan(self, _: str) -> Any:
        if self._hangs:
            await asyncio.Event().wait()
        return {"step_s": 1.0, "need": [self._need] * 60, "ongoing": 0}


class Held:
    """Keeps a request until it is cancelled."""

    async def __call__(self) -> None:
        await asyncio.Event().wait()

    async def quick(self) -> str:
        return "here"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    # How often Serve hears of load; its own default is ten seconds.
    patch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    ray.init(address=made.address, namespace=NAMESPACE, log_to_driver=False)
    yield made
    serve.shutdown()
    ray.shutdown()
    made.shutdown()
    patch.undo()


def replicas() -> int:
    deployment = serve.status().applications[APPLICATION].deployments["Held"]
    return sum(number for state, number in deployment.replica_states.items() if state in {"STARTING", "RUNNING"})


@pytest.mark.usefixtures("cluster")
def test_by_the_plan_by_load_and_to_nothing() -> None:
    forecaster: Any = (
        ray.remote(StubForecaster)
        .options(  # type: ignore[attr-defined]
            name=forecaster_name(APPLICATION), namespace=NAMESPACE, num_cpus=0, max_concurrency=100
        )
        .remote()
    )
    ray.get(forecaster.say.remote(2), timeout=WITHIN_S)
    pool = PoolConfig(name="pool", min_replicas=0, max_replicas=3)
    scaling = scaling_of(pool, AutoscalingConfig(target_ongoing_requests=1, downscale_s=2))
    # As quick as Serve allows, where its usual windows would be most of this test.
    scaling["autoscaling_config"] |= {"look_back_period_s": 1.0, "metrics_interval_s": 0.5}
    held = serve.deployment(Held, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10, **scaling)
    handle = serve.run(held.bind(), name=APPLICATION, route_prefix=None)

    until(lambda: replicas() == 2)
    ray.get(forecaster.say.remote(0), timeout=WITHIN_S)
    until(lambda: replicas() == 0)

    # And back, for a request.
    assert handle.quick.remote().result() == "here"
    until(lambda: replicas() == 0)

    # A forecaster that hangs, and one that is dead: load counts.
    ray.get(forecaster.say.remote(0, hang=True), timeout=WITHIN_S)
    requests = [handle.remote() for _ in range(2)]
    until(lambda: replicas() == 2)
    ray.kill(forecaster)
    requests.append(handle.remote())
    until(lambda: replicas() == 3)
    for request in requests:
        request.cancel()
    until(lambda: replicas() == 0)
