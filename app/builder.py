"""From the configuration to a Serve application: the one place where deployments are wired together.

Named in ``serve_config.yaml`` as ``import_path: app.builder:build_app``.
"""

import sys
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from app.api_keys import read_keys
from app.catalogue import Catalogue
from app.config import AppConfig, PoolConfig, keys_file, parse_config, trace_config
from app.entry import Entry
from app.forecaster import ServedForecastKeeper
from app.model_specs import check_models, store_config
from app.served_gateway import ingress
from autoscaler.actor import FORECASTER, NAMESPACE
from autoscaler.config import AutoscalingConfig
from autoscaler.history import history_file
from deployments import worker_launcher
from deployments.nodes import NodeKeeper
from deployments.replica import ServedEngineReplica
from deployments.residency import NO_LIMIT_BYTES, Limits
from storage.store import StoreConfig

# How long a busy engine keeps others waiting, and how long any model may be kept waiting by its patient objective.
MIN_RESIDENCY_S = 5.0
MAX_STARVATION_S = 30.0

# Engines start and load weights before a replica is of use, and end in order when it goes.
_HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 30}
# Gateways and replicas never block their event loop, so Serve needs no second one beside it to hand requests over.
# For these actors alone: in another job it would forbid handle calls from outside an event loop.
_ONE_LOOP = {
    "env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
}
# Those that need vLLM are forked from the node's process that has imported it already.
_FORKED = _ONE_LOOP | {"py_executable": f"{sys.executable} -I -S {worker_launcher.__file__}"}
# What they import beside it.
_FORKED_MODULES = (
    "deployments.replica",
    "deployments.staged_engine",
    "deployments.vllm_engine",
    "app.gateway",
    "app.guard",
)
_LIGHT = {"num_cpus": 0, "runtime_env": _ONE_LOOP}
# Of a resource that is there to say where something runs.
_TRACE = 0.001
# Every gateway and replica has one question open with the catalogue.
_FOLLOWERS = 10_000
# By name: gateways import it, Serve's controller need not.
_ROUTER = "deployments.served_router.ServedReplicaRouter"
_POLICY = "autoscaler.serve_policy:ForecastPolicy"
# More than the ten seconds between two reports of load to Serve; replicas tell the forecaster of theirs each second.
_LOOK_BACK_S = 15.0
_SHUTDOWN = {"graceful_shutdown_wait_loop_s": 1, "graceful_shutdown_timeout_s": 30}


def build_app(args: dict[str, Any]) -> Application:
    """Return the application that ``args`` describe (``AppConfig``).

    A plain dict and not the pydantic model: so the check and its messages are ours, not a traceback of Serve's.

    Raises:
        ConfigError: something is wrong; nothing was started.
    """
    config = parse_config(args)
    keys = keys_file(config.security)
    if keys is not None:
        read_keys(keys)
    entries = check_models(config)
    storage = store_config(config.storage)
    catalogue = _catalogue(entries, storage, config)
    forecaster = _forecaster(config, catalogue, storage)
    gateway = serve.deployment(
        ingress(),
        name="Gateway",
        num_replicas=config.gateway.replicas,
        max_ongoing_requests=config.gateway.max_ongoing_requests,
        ray_actor_options={
            "num_cpus": config.gateway.num_cpus,
            "resources": config.gateway.resources,
            "runtime_env": _with_vllm(config),
        },
        **_HEALTH,
        **_shutdown(config.gateway.drain_s),
    )
    return gateway.bind(
        config=config,
        catalogue=catalogue,
        pools={pool.name: _pool(pool, catalogue, config, storage) for pool in config.pools},
        nodes=_nodes(storage, config),
        storage=storage,
        forecaster=forecaster,
        keys_file=keys,
    )


def _shutdown(drain_s: float) -> dict[str, Any]:
    return _SHUTDOWN | {"graceful_shutdown_timeout_s": drain_s}


def light_options(config: AppConfig) -> dict[str, Any]:
    """Return the options of the application's own small deployments, which run where gateways do.

    What they keep is on that node's disk, and every replica asks them: not on nodes that come and go.
    """
    return _LIGHT | {"resources": {name: min(amount, _TRACE) for name, amount in config.gateway.resources.items()}}


def _catalogue(entries: list[Entry], storage: StoreConfig, config: AppConfig) -> Application:
    catalogue = serve.deployment(
        Catalogue,
        name="Models",
        max_ongoing_requests=_FOLLOWERS,
        ray_actor_options=light_options(config),
        # It is asked all the time.
        logging_config={"enable_access_log": False},
        **_HEALTH,
        **_SHUTDOWN,
    )
    return catalogue.bind(entries, storage.disk_dir)


def _with_vllm(config: AppConfig) -> dict[str, Any]:
    """Return the runtime environment of deployments that need vLLM."""
    return _FORKED if config.fork_replicas else _ONE_LOOP


def _nodes(storage: StoreConfig, config: AppConfig) -> Application:
    keeper = serve.deployment(
        NodeKeeper,
        name="Nodes",
        max_ongoing_requests=100,
        ray_actor_options=light_options(config),
        **_HEALTH,
        **_SHUTDOWN,
    )
    device = "gpu" if any(pool.num_gpus for pool in config.pools) else "cpu"
    forecaster = None if config.autoscaling is None else FORECASTER
    return keeper.bind(storage, device, forecaster, _FORKED_MODULES if config.fork_replicas else ())


def _pool(pool: PoolConfig, catalogue: Application, config: AppConfig, storage: StoreConfig) -> Application:
    scaling = scaling_of(pool, config.autoscaling)
    options: dict[str, Any] = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus}
    options["runtime_env"] = _with_vllm(config)
    if pool.accelerator_type is not None:
        options["accelerator_type"] = pool.accelerator_type
    deployment = serve.deployment(
        ServedEngineReplica,
        name=f"Engines-{pool.name}",
        max_ongoing_requests=pool.max_ongoing_requests,
        max_queued_requests=config.admission.max_queued_requests,
        ray_actor_options=options,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        **scaling,
        **_HEALTH,
        **_shutdown(pool.drain_s),
    )
    budget_bytes = NO_LIMIT_BYTES if pool.device_bytes is None else pool.device_bytes
    limits = Limits(budget_bytes, min_residency_s=MIN_RESIDENCY_S, max_starvation_s=MAX_STARVATION_S)
    return deployment.bind(
        catalogue=catalogue,
        pool=pool.name,
        storage=storage,
        limits=limits,
        max_wait_s=config.admission.max_wait_s,
        forecaster=None if config.autoscaling is None else FORECASTER,
        tracing=trace_config(config.tracing),
    )


def scaling_of(pool: PoolConfig, autoscaling: AutoscalingConfig | None) -> dict[str, Any]:
    """Return Serve's options that say how many replicas a pool has, and how many of them a node may have."""
    spread = {} if pool.max_replicas_per_node is None else {"max_replicas_per_node": pool.max_replicas_per_node}
    if pool.max_replicas <= pool.min_replicas:
        return {"num_replicas": pool.min_replicas} | spread
    bounds = {"min_replicas": pool.min_replicas, "max_replicas": pool.max_replicas}
    return {"autoscaling_config": bounds | _policy(pool, autoscaling)} | spread


def _policy(pool: PoolConfig, autoscaling: AutoscalingConfig | None) -> dict[str, Any]:
    """Return what makes Serve scale a pool by load and forecast; without forecasts, it scales by its own rule."""
    if autoscaling is None:
        return {}
    arguments = {
        "forecaster": FORECASTER,
        "namespace": NAMESPACE,
        "pool": pool.name,
        "target_ongoing": autoscaling.target_ongoing_requests,
        "hold_s": autoscaling.downscale_s,
    }
    return {
        # The delays are the policy's own: what is measured counts at once.
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "look_back_period_s": _LOOK_BACK_S,
        "target_ongoing_requests": autoscaling.target_ongoing_requests,
        "policy": {"policy_function": _POLICY, "policy_kwargs": arguments},
    }


def _forecaster(config: AppConfig, catalogue: Application, storage: StoreConfig) -> Application | None:
    if config.autoscaling is None:
        return None
    keeper = serve.deployment(
        ServedForecastKeeper,
        name="Forecaster",
        max_ongoing_requests=100,
        ray_actor_options=light_options(config),
        **_HEALTH,
        **_SHUTDOWN,
    )
    return keeper.bind(config.autoscaling, str(history_file(storage.disk_dir)), catalogue, config.pools)
