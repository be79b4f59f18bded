"""The configuration: what stands under ``args`` in ``serve_config.yaml``, checked before anything starts.

Covers: shape, names, values that can be judged without a device, absolute directories. Does not cover: what Serve takes
itself (``http_options``, ``deployments``), and files (``storage``, called by the builder).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from rapidfuzz import process

from app.errors import ConfigError
from app.tenants import TENANT_NAME
from autoscaler.config import AutoscalingConfig
from deployments.tracing import TraceConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraConfig(_Section):
    """LoRA adapters of a model: every subdirectory of ``source`` in PEFT layout is one, remote ones when asked for."""

    max_loras: int = Field(4, ge=1, description="different adapters in one batch; a device slot is kept for each")
    max_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(16, description="highest rank of an adapter")
    source: str | None = Field(None, description="directory, or s3://bucket/prefix, with a directory for each adapter")


class OpenAIConfig(_Section):
    """Arguments of vLLM's OpenAI classes that are not the engine's."""

    chat_template: str | None = Field(None, description="file or text of a Jinja template; default: the model's own")
    tool_call_parser: str | None = Field(None, description="vLLM's name of the parser for tool calls")
    enable_auto_tool_choice: bool = Field(default=False, description="let the model decide to call tools")

    @model_validator(mode="after")
    def _parser_for_tools(self) -> "OpenAIConfig":
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            message = "enable_auto_tool_choice needs a tool_call_parser"
            raise ValueError(message)
        return self


class SloConfig(_Section):
    """What users of a model expect."""

    ttft_s: float = Field(1.0, gt=0, description="time to the first token; who has least of it left wakes first")


class ModelConfig(_Section):
    """A base model."""

    id: str = Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    source: str = Field(min_length=1, description="directory, s3://bucket/prefix or hf://org/name@revision")
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM engine arguments")
    concurrency: int = Field(
        8, ge=1, description="sequences of 2,048 tokens that the KV cache has room for on a CPU, unless it has a size"
    )
    lora: LoraConfig | None = None
    openai: OpenAIConfig = OpenAIConfig()
    slo: SloConfig = SloConfig()
    keep_awake_s: float | None = Field(
        60.0, ge=0, description="idle time before sleep; null: until others need the room"
    )
    pin: Literal["gpu", "dram", "disk"] | None = Field(None, description="keep it awake, or its snapshot in a tier")
    own_engines: list[Annotated[str, Field(pattern=f"^{TENANT_NAME}$")]] = Field(
        default_factory=list, description="tenants that share no engine of it with others, and the weights with all"
    )


class PoolConfig(_Section):
    """Equal engine replicas; each hosts every model of the pool."""

    name: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]*$")
    num_gpus: float = Field(0, ge=0, description="GPUs of a replica; 0 serves on the CPU")
    num_cpus: float = Field(1, ge=0, description="processors that Ray reserves for a replica")
    accelerator_type: str | None = Field(None, description="Ray's name of a GPU type, such as H100")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    max_replicas_per_node: int | None = Field(None, ge=1, description="spreads replicas over nodes; null: no limit")
    models: Literal["*"] | list[str] = Field("*", description="ids of the models it hosts; * for all")
    max_ongoing_requests: int = Field(256, ge=1, description="sequences a replica works on, or holds, at once")
    device_bytes: ByteSize | None = Field(None, description="memory for engines; null: all its GPUs have, or no limit")
    drain_s: float = Field(120.0, gt=0, description="how long a replica that leaves keeps streams that can't move")

    @model_validator(mode="after")
    def _replicas_in_order(self) -> "PoolConfig":
        if self.min_replicas > self.max_replicas:
            message = f"min_replicas ({self.min_replicas}) is more than max_replicas ({self.max_replicas})"
            raise ValueError(message)
        return self


class GatewayConfig(_Section):
    """The ingress deployment."""

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0, ge=0, description="processors that Ray reserves for a gateway")
    resources: dict[str, float] = Field(
        default_factory=dict,
        description="Ray's custom resources that a gateway takes; the application's small actors take a trace of each",
    )
    max_ongoing_requests: int = Field(1024, ge=1, description="requests a gateway works on at once")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024, description="larger requests get 413")
    drain_s: float = Field(300.0, gt=0, description="how long a gateway that leaves lets its connections end")


class AdmissionConfig(_Section):
    """When a request is turned away."""

    max_queued_requests: int = Field(512, ge=-1, description="sequences a gateway holds for a busy pool; -1: no limit")
    max_wait_s: float = Field(120.0, gt=0, description="how long a request is held for its model, then 503")
    header_wait_s: float = Field(
        2.0, ge=0, description="how long a stream's headers wait, so that refusals keep a status"
    )


class S3Config(_Section):
    """How S3 is reached; credentials and region come from the environment."""

    endpoint_url: str | None = Field(None, description="address of an S3 server other than Amazon's")


class StorageConfig(_Section):
    """Where snapshots of models are kept on each node, and how much room they may take."""

    dram_bytes: ByteSize = Field(ByteSize(4 * 1024**3), ge=0, description="host memory for snapshots")
    adapter_dram_bytes: ByteSize = Field(
        ByteSize(1024**3), ge=0, description="host memory for adapters in their engines' layout, beside dram_bytes"
    )
    disk_bytes: ByteSize = Field(ByteSize(20 * 1024**3), ge=0, description="disk for snapshots")
    disk_dir: Path = Field(Path(".flashserve/snapshots"), description="directory of the disk tier")
    dram_dir: Path | None = Field(None, description="directory of the dram tier; default: one in /dev/shm")
    peers: bool = Field(default=True, description="take snapshots from other nodes before their source")
    s3: S3Config = S3Config()


class SecurityConfig(_Section):
    """Who may use the service."""

    api_keys_file: Path | None = Field(None, description="file of tenants with their keys; it is followed")
    allow_anonymous: bool = Field(default=False, description="without keys, serve more than this machine")


class TracingConfig(_Section):
    """OpenTelemetry traces of requests."""

    endpoint: str = Field(pattern=r"^https?://", description="base address of a collector that takes OTLP over HTTP")
    sample: float = Field(1.0, ge=0, le=1, description="share of requests that are traced")


def trace_config(tracing: TracingConfig | None) -> TraceConfig | None:
    """Return what deployments are told of it."""
    return None if tracing is None else TraceConfig(tracing.endpoint, tracing.sample)


def keys_file(security: SecurityConfig) -> Path | None:
    """Return the file of tenants; a relative one is taken from where the application is built."""
    return security.api_keys_file.expanduser().resolve() if security.api_keys_file is not None else None


def dram_dir(storage: StorageConfig) -> Path:
    """Return the directory of the dram tier: unless one is named, in shared memory, for each disk tier another."""
    if storage.dram_dir is not None:
        return storage.dram_dir.expanduser().resolve()
    return Path("/dev/shm", f"flashserve{disk_dir(storage)}".replace("/", "-"))  # noqa: S108 - memory is the point


def disk_dir(storage: StorageConfig) -> Path:
    """Return the directory of the disk tier; a relative one is taken from where the application is built."""
    return storage.disk_dir.expanduser().resolve()


class AppConfig(_Section):
    """Everything under ``args``."""

    models: list[ModelConfig] = Field(min_length=1)
    pools: list[PoolConfig] = Field(default_factory=lambda: [PoolConfig()], min_length=1)
    gateway: GatewayConfig = GatewayConfig()
    admission: AdmissionConfig = AdmissionConfig()
    storage: StorageConfig = StorageConfig()
    autoscaling: AutoscalingConfig | None = Field(
        AutoscalingConfig(), description="forecasts that scale ahead of demand; null: by requests alone"
    )
    security: SecurityConfig = SecurityConfig()
    tracing: TracingConfig | None = Field(None, description="traces of requests; null: none")
    fork_replicas: bool = Field(
        default=True,
        description="fork replicas and gateways from the node's process that has imported vLLM; it must be installed at"
        " one path on all nodes, and no environment be made for the application (pip, conda, container)",
    )

    def pool_of(self, model_id: str) -> PoolConfig:
        """Return the first pool that hosts the model.

        Raises:
            ConfigError: none does.
        """
        for pool in self.pools:
            if pool.models == "*" or model_id in pool.models:
                return pool
        raise ConfigError((f"id: no pool hosts '{model_id}'",))


def parse_config(args: Any) -> AppConfig:
    """Check the arguments of the application.

    Raises:
        ConfigError: with a sentence for each problem: the path of the key, what is wrong and the nearest valid name.
    """
    try:
        config = AppConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError(tuple(problem_text(detail) for detail in error.errors())) from error
    problems = tuple(_conflicts(config))
    if problems:
        raise ConfigError(problems)
    return config


def parse_model(args: Any) -> ModelConfig:
    """Check one model's section by itself. Raises ConfigError as ``parse_config``, with paths inside the section."""
    try:
        return ModelConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError(tuple(problem_text(detail, ModelConfig) for detail in error.errors())) from error


def _conflicts(config: AppConfig) -> Iterable[str]:
    ids = [model.id for model in config.models]
    for index, model_id in enumerate(ids):
        if model_id in ids[:index]:
            yield f"models[{index}].id: '{model_id}' is given twice"
        if config.models[index].own_engines and config.security.api_keys_file is None:
            yield f"models[{index}].own_engines: there are no tenants without security.api_keys_file"
    names = [pool.name for pool in config.pools]
    for index, pool in enumerate(config.pools):
        if pool.name in names[:index]:
            yield f"pools[{index}].name: '{pool.name}' is given twice"
        for wanted in pool.models if pool.models != "*" else ():
            if wanted not in ids:
                yield f"pools[{index}].models: there is no model '{wanted}'{_nearest(wanted, ids)}"
    for index, model_id in enumerate(ids):
        if not any(pool.models == "*" or model_id in pool.models for pool in config.pools):
            yield f"models[{index}].id: no pool hosts '{model_id}'"


def problem_text(detail: ErrorDetails, root: Any = AppConfig) -> str:
    """Return a sentence about one of pydantic's problems with ``root``, beginning with the path of the key."""
    location = detail["loc"]
    path = path_text(location)
    if detail["type"] == "extra_forbidden":
        return f"{path}: there is no such key{_nearest(str(location[-1]), _keys_at(root, location[:-1]))}"
    if detail["type"] == "missing":
        return f"{path}: this key is required"
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    given = "" if isinstance(value, dict | list) else f" (got {value!r})"
    return f"{path}: {message[0].lower()}{message[1:]}{given}"


def path_text(location: Iterable[int | str]) -> str:
    """Return a key's path as one would write it: ``models[0].engine.max_model_len``."""
    text = ""
    for part in location:
        # A union adds the name of its branch to the location, which is no key.
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith(("literal[", "list[")):
            text += f".{part}" if text else part
    return text or "args"


def _keys_at(root: Any, location: tuple[int | str, ...]) -> list[str]:
    section = root
    for part in location:
        if isinstance(part, int):
            continue
        section = _section_type(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_type(annotation: Any) -> Any:
    if get_origin(annotation) is None:
        return annotation
    sections = [_section_type(argument) for argument in get_args(annotation) if argument is not type(None)]
    return next(section for section in sections if isinstance(section, type) and issubclass(section, BaseModel))


def _nearest(name: str, known: Iterable[str]) -> str:
    found = process.extractOne(name, list(known))
    return f"; did you mean '{found[0]}'?" if found else ""
