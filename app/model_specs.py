"""From a model of the configuration to what a replica is told to host, checked: files, adapters, engine arguments."""

import math
import re

from app.accepted import AcceptedModels
from app.config import AppConfig, ModelConfig, PoolConfig, StorageConfig, disk_dir, dram_dir
from app.entry import Entry, everybodys
from app.errors import ConfigError
from app.machine import engine_bytes
from app.names import ADAPTER_NAME, NAME_RULE
from deployments.errors import EngineArgumentError
from deployments.types import AdapterSpec, ModelSpec
from storage.adapter_source import base_config
from storage.checkpoint import SourceCache
from storage.errors import AdapterError, StorageError
from storage.source import Adapter, absolute, adapters_in
from storage.store import StoreConfig


def store_config(storage: StorageConfig) -> StoreConfig:
    """Return what a node's store is told."""
    return StoreConfig(
        dram_dir=dram_dir(storage),
        dram_bytes=storage.dram_bytes,
        disk_dir=disk_dir(storage),
        disk_bytes=storage.disk_bytes,
        adapter_dram_bytes=storage.adapter_dram_bytes,
        s3_endpoint_url=storage.s3.endpoint_url,
        peers=storage.peers,
    )


def check_models(config: AppConfig) -> list[Entry]:
    """Return the configured models after checking files, adapters and engine arguments.

    Raises:
        ConfigError: with every problem that was found.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    storage = store_config(config.storage)
    sources = SourceCache(storage.disk_dir, storage.s3_endpoint_url)
    accepted = AcceptedModels(storage.disk_dir)
    for index, model in enumerate(config.models):
        try:
            entries.append(check_model(model, config.pool_of(model.id), sources, accepted))
        except ConfigError as error:
            problems += (f"models[{index}]{problem}" for problem in error.problems)
    if problems:
        raise ConfigError(tuple(problems))
    return entries


def check_model(model: ModelConfig, pool: PoolConfig, sources: SourceCache, accepted: AcceptedModels) -> Entry:
    """Return a model that ``pool`` hosts as it is served; reads its small files, and imports vLLM for what is new.

    Raises:
        ConfigError: its one problem begins with what follows the model's own path in the configuration.
    """
    _check_devices(model, pool)
    try:
        spec = _spec(model, pool, sources)
        if not accepted.holds(spec):
            _ask_vllm(spec)
            accepted.add(spec)
    except StorageError as error:
        raise ConfigError((f": {error}",)) from error
    except EngineArgumentError as error:
        key = f".{error.key}" if error.key else ""
        raise ConfigError((f".engine{key}: {error.reason}",)) from error
    frontend = model.openai.model_dump(exclude_defaults=True)
    lora_source = absolute(model.lora.source) if model.lora is not None and model.lora.source else ""
    given = model.model_dump(mode="json")
    own_engines = tuple(sorted(set(model.own_engines)))
    return Entry(everybodys(spec, own_engines), frontend, pool.name, given, lora_source, own_engines=own_engines)


def _check_devices(model: ModelConfig, pool: PoolConfig) -> None:
    """Raise ConfigError where a replica of the pool has fewer GPUs than the engine has ranks."""
    # What is no number, vLLM will say.
    sizes = [model.engine.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline")]
    ranks = math.prod(size for size in sizes if isinstance(size, int))
    if pool.num_gpus and ranks > pool.num_gpus:
        problem = (
            f"its {ranks} ranks take a GPU each, and a replica of pool '{pool.name}' has {pool.num_gpus:g} (num_gpus)"
        )
        raise ConfigError((f".engine.tensor_parallel_size: {problem}",))


def _spec(model: ModelConfig, pool: PoolConfig, sources: SourceCache) -> ModelSpec:
    source = sources.localize(model.source)
    lora = model.lora
    base = base_config(source.directory)
    adapters = adapters_in(lora.source, base, lora.max_rank) if lora and lora.source else []
    return ModelSpec(
        id=model.id,
        path=str(source.directory),
        source=source.url if source.is_remote else "",
        engine=model.engine,
        concurrency=model.concurrency,
        lora_enabled=lora is not None,
        max_loras=lora.max_loras if lora else 1,
        max_lora_rank=lora.max_rank if lora else 16,
        adapters=tuple(adapter_spec(adapter) for adapter in adapters),
        device="gpu" if pool.num_gpus else "cpu",
        keep_awake_s=model.keep_awake_s,
        ttft_slo_s=model.slo.ttft_s,
        pin=model.pin,
        # What one takes on a GPU, its replica knows.
        awake_bytes=0 if pool.num_gpus else engine_bytes(model, source.directory),
    )


def _ask_vllm(spec: ModelSpec) -> None:
    """Raise EngineArgumentError for what vLLM would refuse."""
    from deployments.engine_args import check_engine_arguments, engine_config  # noqa: PLC0415 - imports vLLM

    check_engine_arguments(spec.id, spec.engine)
    if spec.device == "cpu":
        # For a GPU this needs the device, which the machine that builds the application may not have.
        engine_config(spec)


def adapter_spec(adapter: Adapter, owner: str | None = None) -> AdapterSpec:
    """Return a checked adapter as its model has it. Raises AdapterError: it can't be called so."""
    if re.fullmatch(ADAPTER_NAME, adapter.id) is None:
        raise AdapterError(adapter.path, f"'{adapter.id}' is no name for it: {NAME_RULE}")
    return AdapterSpec(adapter.id, adapter.path, adapter.digest, owner, adapter.rank, adapter.size_bytes)
