"""From the configuration to a Serve application: the one place where deployments are wired together.

Named in ``serve_config.yaml`` as ``import_path: app.builder:build_app``.
"""

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from app.config import AppConfig, ModelConfig, PoolConfig, StorageConfig, disk_dir, dram_dir, parse_config
from app.errors import ConfigError
from deployments.errors import EngineArgumentError
from deployments.nodes import NodeKeeper
from deployments.replica import ServedEngineReplica
from deployments.residency import Limits
from deployments.types import AdapterSpec, ModelSpec
from storage.checkpoint import SourceCache
from storage.errors import AdapterError, StorageError
from storage.source import Adapter, adapters_in
from storage.store import StoreConfig

NO_LIMIT_BYTES = 1 << 62
# How long a busy engine keeps others waiting, and how long any model may be kept waiting by its patient objective.
MIN_RESIDENCY_S = 5.0
MAX_STARVATION_S = 30.0

DEFAULT_KV_BYTES = 512 * 1024 * 1024
# Measured: an engine's two processes and what they import, beside weights and KV cache.
ENGINE_OVERHEAD_BYTES = 1_500_000_000

# Engines start and load weights before a replica is of use, and end in order when it goes.
_HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 30}
# Gateways and replicas never block their event loop, so Serve needs no second one beside it to hand requests over.
# For these actors alone: in another job it would forbid handle calls from outside an event loop.
_ONE_LOOP = {
    "env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
}
_SHUTDOWN = {"graceful_shutdown_wait_loop_s": 1, "graceful_shutdown_timeout_s": 30}


def build_app(args: dict[str, Any]) -> Application:
    """Return the application that ``args`` describe (``AppConfig``).

    A plain dict and not the pydantic model: so the check and its messages are ours, not a traceback of Serve's.

    Raises:
        ConfigError: something is wrong; nothing was started.
    """
    config = parse_config(args)
    specs = check_models(config)
    storage = store_config(config.storage)
    pools = {pool.name: _pool(pool, specs, config, storage) for pool in config.pools}
    from app.gateway import ingress  # noqa: PLC0415 - imports vLLM, which takes seconds: only for a good configuration

    gateway = serve.deployment(
        ingress(),
        name="Gateway",
        num_replicas=config.gateway.replicas,
        max_ongoing_requests=config.gateway.max_ongoing_requests,
        ray_actor_options={"num_cpus": config.gateway.num_cpus, "runtime_env": _ONE_LOOP},
        **_HEALTH,
        **_SHUTDOWN,
    )
    return gateway.bind(
        specs=specs,
        frontends={model.id: model.openai.model_dump(exclude_defaults=True) for model in config.models},
        pools={model.id: pools[config.pool_of(model.id).name] for model in config.models},
        nodes=_nodes(storage, config),
        storage=storage,
        max_body_bytes=config.gateway.max_body_bytes,
        header_wait_s=config.admission.header_wait_s,
    )


def store_config(storage: StorageConfig) -> StoreConfig:
    """Return what a node's store is told."""
    return StoreConfig(
        dram_dir=dram_dir(storage),
        dram_bytes=storage.dram_bytes,
        disk_dir=disk_dir(storage),
        disk_bytes=storage.disk_bytes,
        s3_endpoint_url=storage.s3.endpoint_url,
    )


def check_models(config: AppConfig) -> list[ModelSpec]:
    """Return what the replicas host, after checking files, adapters and engine arguments.

    Raises:
        ConfigError: with every problem that was found.
    """
    specs, problems = [], []
    storage = store_config(config.storage)
    sources = SourceCache(storage.disk_dir, storage.s3_endpoint_url)
    for index, model in enumerate(config.models):
        try:
            specs.append(_spec(model, config.pool_of(model.id), sources))
        except StorageError as error:
            problems.append(f"models[{index}]: {error}")
        except EngineArgumentError as error:
            key = f".{error.key}" if error.key else ""
            problems.append(f"models[{index}].engine{key}: {error.reason}")
    if problems:
        raise ConfigError(tuple(problems))
    return specs


def _spec(model: ModelConfig, pool: PoolConfig, sources: SourceCache) -> ModelSpec:
    from deployments.engine_args import check_engine_arguments, engine_config  # noqa: PLC0415 - imports vLLM

    source = sources.localize(model.source)
    check_engine_arguments(model.id, model.engine)
    lora = model.lora
    adapters = adapters_in(lora.source) if lora and lora.source else []
    spec = ModelSpec(
        id=model.id,
        path=str(source.directory),
        source=source.url if source.is_remote else "",
        engine=model.engine,
        lora_enabled=lora is not None,
        max_loras=lora.max_loras if lora else 1,
        max_lora_rank=lora.max_rank if lora else 16,
        adapters=tuple(_adapter_spec(adapter, lora.max_rank) for adapter in adapters) if lora else (),
        device="gpu" if pool.num_gpus else "cpu",
        keep_awake_s=model.keep_awake_s,
        ttft_slo_s=model.slo.ttft_s,
        pin=model.pin,
        awake_bytes=engine_bytes(model, source.directory),
    )
    if spec.device == "cpu":
        # For a GPU this needs the device, which the machine that builds the application may not have.
        engine_config(spec)
    return spec


def engine_bytes(model: ModelConfig, directory: Path) -> int:
    """Estimate the memory of a model's engine, for as long as nobody has measured it."""
    weights_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return weights_bytes + int(model.engine.get("kv_cache_memory_bytes", DEFAULT_KV_BYTES)) + ENGINE_OVERHEAD_BYTES


def _adapter_spec(adapter: Adapter, max_rank: int) -> AdapterSpec:
    if adapter.rank > max_rank:
        raise AdapterError(str(adapter.path), f"its rank is {adapter.rank}, and 'lora.max_rank' allows {max_rank}")
    return AdapterSpec(adapter.id, str(adapter.path), adapter.digest)


def _nodes(storage: StoreConfig, config: AppConfig) -> Application:
    options = {"num_cpus": 0, "runtime_env": _ONE_LOOP}
    keeper = serve.deployment(
        NodeKeeper, name="Nodes", max_ongoing_requests=100, ray_actor_options=options, **_HEALTH, **_SHUTDOWN
    )
    return keeper.bind(storage, "gpu" if any(pool.num_gpus for pool in config.pools) else "cpu")


def _pool(pool: PoolConfig, specs: list[ModelSpec], config: AppConfig, storage: StoreConfig) -> Application:
    hosted = [spec for spec in specs if pool.models == "*" or spec.id in pool.models]
    scaling: dict[str, Any] = {"num_replicas": pool.min_replicas}
    if pool.max_replicas > pool.min_replicas:
        scaling = {"autoscaling_config": {"min_replicas": pool.min_replicas, "max_replicas": pool.max_replicas}}
    options: dict[str, Any] = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus, "runtime_env": _ONE_LOOP}
    if pool.accelerator_type is not None:
        options["accelerator_type"] = pool.accelerator_type
    deployment = serve.deployment(
        ServedEngineReplica,
        name=f"Engines-{pool.name}",
        max_ongoing_requests=pool.max_ongoing_requests,
        max_queued_requests=config.admission.max_queued_requests,
        ray_actor_options=options,
        **scaling,
        **_HEALTH,
        **_SHUTDOWN,
    )
    budget_bytes = NO_LIMIT_BYTES if pool.device_bytes is None else pool.device_bytes
    limits = Limits(budget_bytes, min_residency_s=MIN_RESIDENCY_S, max_starvation_s=MAX_STARVATION_S)
    return deployment.bind(models=hosted, storage=storage, limits=limits, max_wait_s=config.admission.max_wait_s)
