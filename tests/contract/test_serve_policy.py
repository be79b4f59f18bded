"""The scaling policy as Serve takes it: pickled by value, made once, asked in its controller, and bounded there."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve._private.autoscaling_state import _apply_autoscaling_config, _resolve_policy_callable
from ray.serve.config import AutoscalingConfig as ServeConfig

from app.builder import scaling_of
from app.config import PoolConfig
from autoscaler import serve_policy
from autoscaler.config import AutoscalingConfig


def serve_config(**pool: Any) -> ServeConfig:
    options = scaling_of(PoolConfig(name="p", **pool), AutoscalingConfig(target_ongoing_requests=4, downscale_s=0))
    return ServeConfig(**options["autoscaling_config"])


def context(config: ServeConfig, requests: float, running: int) -> Any:
    return SimpleNamespace(
        app_name="app", total_num_requests=requests, current_num_replicas=running, target_num_replicas=running,
        capacity_adjusted_min_replicas=config.min_replicas, capacity_adjusted_max_replicas=config.max_replicas,
        policy_state={}, config=config,
    )  # fmt: skip


class Reader:
    def __init__(self, _question: Any) -> None:
        pass

    def latest(self) -> Any:
        return {"step_s": 10.0, "need": [0, 2, 2], "ongoing": 0}, 1.0


def test_serve_makes_it_and_applies_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not in the module: whoever has unpickled the class in this process has given its methods other globals.
    monkeypatch.setitem(serve_policy.ForecastPolicy.__call__.__globals__, "PlanReader", Reader)
    config = serve_config(min_replicas=0, max_replicas=5)
    policy = serve_policy.ForecastPolicy(**config.policy.policy_kwargs)
    decide = _apply_autoscaling_config(policy)
    assert decide(context(config, 0.0, 0))[0] == 2, "from nothing, for the forecast"
    assert decide(context(config, 30.0, 2))[0] == 5, "at once, within bounds"


def test_serve_unpickles_it_in_a_process_of_its_own() -> None:
    config = serve_config(min_replicas=0, max_replicas=5)
    made = _resolve_policy_callable(config.policy)
    assert type(made).__name__ == "ForecastPolicy"
    pickled = config.policy.get_serialized_policy_def()
    assert pickled is not None
    subprocess.run([sys.executable, "-c", _CALLED], input=pickled, check=True)


_CALLED = """
import sys
from types import SimpleNamespace
from ray import cloudpickle
policy = cloudpickle.loads(sys.stdin.buffer.read())(
    forecaster="forecaster", namespace="n", pool="p", target_ongoing=4.0, hold_s=0.0)
context = SimpleNamespace(app_name="app", total_num_requests=9.0, current_num_replicas=1, target_num_replicas=1,
                          capacity_adjusted_min_replicas=0, capacity_adjusted_max_replicas=5)
# There is no Ray here, so nobody answers: load alone decides.
assert policy(context)[0] == 3
assert policy(context)[0] == 3
"""


def test_without_forecasts_serve_scales_by_its_own_rule() -> None:
    options = scaling_of(PoolConfig(min_replicas=1, max_replicas=3), None)
    assert options == {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}
    assert scaling_of(PoolConfig(), AutoscalingConfig()) == {"num_replicas": 1}


def test_replicas_can_be_spread_over_nodes() -> None:
    """Serve takes the option, for a fixed number of replicas and for a scaled one."""
    for most in (2, 3):
        options = scaling_of(PoolConfig(min_replicas=2, max_replicas=most, max_replicas_per_node=1), None)
        made = serve.deployment(Named, **options)
        assert made.options(name="another")._replica_config.max_replicas_per_node == 1


class Named:
    """Something to deploy."""
