"""From a model of the configuration to vLLM's engine arguments; the one file that knows their names.

The gateway builds the same configuration as the engine does, so that prompts are rendered, checked and detokenized
by the rules of the engine that will run them.
"""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from rapidfuzz import process
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.engine import arg_utils
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from deployments.errors import EngineArgumentError
from deployments.kv_plan import planned_kv_bytes
from deployments.types import ModelSpec
from storage.adapter_dram import AdapterDram

# Either says how large the KV cache is.
_KV_CACHE_SIZES = {"gpu_memory_utilization", "kv_cache_memory_bytes"}

# By name, since vLLM resolves them in the engine's own processes.
CPU_EXECUTOR = "deployments.cpu_executor.CpuExecutor"
CPU_WORKER = "deployments.cpu_worker.SleepingCpuWorker"
GPU_WORKER_EXTENSION = "deployments.gpu_worker.SleepingGpuWorker"
SCHEDULER = "deployments.resuming_scheduler.make_scheduler"

# The load format of ``snapshot_loader``, which only vLLM's own processes import.
SNAPSHOT_FORMAT = "flashserve"

# What a worker is told in vLLM's ``additional_config``: where a node keeps its packed adapters, and whether it computes
# from the node's copy of the weights.
_ADAPTERS = "flashserve_adapters"
_SHARES_WEIGHTS = "flashserve_shares_weights"

# Said elsewhere in the configuration, so naming them among the engine arguments would be ambiguous.
_RESERVED = {
    "model": "it is the model's 'source'",
    "served_model_name": "it is the model's 'id'",
    "tokenizer": "the tokenizer comes with the model's 'source'",
    "enable_lora": "it follows from the model's 'lora' section",
    "max_loras": "it is 'lora.max_loras'",
    "max_lora_rank": "it is 'lora.max_rank'",
    "trust_remote_code": "code from a model repository is never run",
    "worker_cls": "FlashServe sets it",
    "worker_extension_cls": "FlashServe sets it",
    "enable_sleep_mode": "FlashServe sets it",
    "scheduler_cls": "FlashServe sets it",
}


def engine_args(spec: ModelSpec) -> AsyncEngineArgs:
    """Return the arguments of the engine that serves ``spec``."""
    values: dict[str, Any] = {
        "model": spec.path,
        "served_model_name": [spec.id],
        "enable_log_requests": False,
        # Every engine has its own stat logger (see vllm_engine); vLLM's default ones unregister each other.
        "disable_log_stats": True,
        # vLLM chooses a backend for each request, but an engine uses that of its first one for all: a grammar checked
        # for another fails in the engine. This one knows the grammars of tool calls.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar"),
        # Within its batch limits an engine takes tenants' sequences in the order of their ranks; where nobody is ranked
        # that is the order of arrival.
        "scheduling_policy": "priority",
        "scheduler_cls": SCHEDULER,
    }
    if spec.lora_enabled:
        values |= {"enable_lora": True, "max_loras": spec.max_loras, "max_lora_rank": spec.max_lora_rank}
    if spec.device == "cpu":
        values |= {
            "distributed_executor_backend": CPU_EXECUTOR,
            "worker_cls": CPU_WORKER,
        }
        if not _KV_CACHE_SIZES & spec.engine.keys():
            model = AsyncEngineArgs(**(values | spec.engine)).create_model_config()
            cache_dtype = spec.engine.get("kv_cache_dtype", "auto")
            values["kv_cache_memory_bytes"] = planned_kv_bytes(model, spec.concurrency, cache_dtype)
    else:
        # A gateway builds the same configuration where there may be no such memory; vLLM would refuse it there.
        sleeps = current_platform.is_sleep_mode_available()
        values |= {"worker_extension_cls": GPU_WORKER_EXTENSION, "enable_sleep_mode": sleeps}
    values |= spec.engine
    told: dict[str, Any] = {}
    if spec.lora_enabled and spec.adapters_in:
        told[_ADAPTERS] = {"root": spec.adapters_in, "max_bytes": spec.adapters_bytes}
    if spec.shares_weights:
        told[_SHARES_WEIGHTS] = True
    if told:
        values["additional_config"] = (values.get("additional_config") or {}) | told
    return AsyncEngineArgs(**values)


def adapter_dram(config: VllmConfig) -> AdapterDram | None:
    """Return where a worker with this configuration shares its adapters with others; None: it keeps its own."""
    told = _told(config).get(_ADAPTERS)
    return None if told is None else AdapterDram(Path(told["root"]), told["max_bytes"])


def shares_weights(config: VllmConfig) -> bool:
    """Tell whether a worker with this configuration computes from the node's copy of the weights."""
    return bool(_told(config).get(_SHARES_WEIGHTS))


def _told(config: VllmConfig) -> dict[str, Any]:
    return config.additional_config if isinstance(config.additional_config, dict) else {}


def engine_config(spec: ModelSpec) -> VllmConfig:
    """Return the full vLLM configuration of ``spec``; reads the model's config files, starts nothing.

    Raises:
        EngineArgumentError: vLLM refuses a value or the model's files.
    """
    try:
        return engine_args(spec).create_engine_config()
    # vLLM has no error of its own for this: it also asserts, on arguments that don't go together.
    except (ValueError, OSError, TypeError, NotImplementedError, AssertionError) as error:
        raise EngineArgumentError(spec.id, None, _first_reason(error)) from error


def check_engine_arguments(model_id: str, engine: dict[str, Any]) -> None:
    """Check names and types of configured engine arguments, reading no model and needing no device.

    Raises:
        EngineArgumentError: naming the key and, for an unknown one, the nearest valid name.
    """
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for key, value in engine.items():
        if key in _RESERVED:
            raise EngineArgumentError(model_id, key, f"may not be given here: {_RESERVED[key]}")
        if key not in known:
            nearest = process.extractOne(key, sorted(known - set(_RESERVED)))
            raise EngineArgumentError(model_id, key, f"vLLM has no such argument; did you mean '{nearest[0]}'?")
        adapter = _type_of(key)
        try:
            if adapter is not None:
                adapter.validate_python(value)
        except ValidationError as error:
            raise EngineArgumentError(model_id, key, f"{error.errors()[0]['msg']} (got {value!r})") from error


def _type_of(key: str) -> TypeAdapter[Any] | None:
    """Return what checks an argument's value; None where vLLM's annotation can't be evaluated or checked."""
    field = next(field for field in dataclasses.fields(AsyncEngineArgs) if field.name == key)
    holder = type("Holder", (), {"__annotations__": {key: field.type}})
    try:
        hint = get_type_hints(holder, globalns=vars(arg_utils))[key]
        return TypeAdapter(hint)
    except (NameError, PydanticSchemaGenerationError):
        # Some annotations name what vLLM imports only for type checkers; its own constructor will judge the value.
        return None


def _first_reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(item["msg"].removeprefix("Value error, ").split(". ")[0] for item in error.errors())
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
