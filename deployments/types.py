"""Plain data that crosses process borders: what a replica is told to host, and what a gateway asks of it.

Everything a request carries is a builtin type, so neither side unpickles the other's classes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

EngineState = Literal["starting", "awake", "failed", "stopped"]


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter: ``path`` is a directory in PEFT layout, ``digest`` the SHA-256 of its weights."""

    id: str
    path: str
    digest: str


@dataclass(frozen=True)
class ModelSpec:
    """A base model to host: ``path`` is a directory in Hugging Face layout, ``engine`` vLLM engine arguments.

    ``source`` is where it comes from when that is no directory; ``path`` then holds its small files on the node that
    read the configuration, and other nodes fetch their own.
    """

    id: str
    path: str
    engine: dict[str, Any] = field(default_factory=dict)
    lora_enabled: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    adapters: tuple[AdapterSpec, ...] = ()
    device: Literal["cpu", "gpu"] = "cpu"
    source: str = ""


class ReplyTo(TypedDict):
    """Where a gateway listens for token deltas; ``key`` proves that the replica was asked by that gateway."""

    host: str
    port: int
    key: str


class AdapterRef(TypedDict):
    """An adapter as a request names it; the replica gives it an integer id of its own."""

    id: str
    path: str
    digest: str


class GenerateRequest(TypedDict):
    """One sequence to generate. ``sampling`` holds the fields of vLLM's SamplingParams as builtin types."""

    stream_id: str
    model_id: str
    prompt_token_ids: list[int]
    sampling: dict[str, Any]
    reply_to: ReplyTo
    adapter: NotRequired[AdapterRef | None]
    priority: NotRequired[int]
    cache_salt: NotRequired[str | None]


class GenerateSummary(TypedDict):
    """What ``generate`` returns once every delta has been handed to the feed."""

    token_count: int
    finish_reason: str


class EmbedRequest(TypedDict):
    """One prompt to pool. ``pooling`` holds the fields of vLLM's PoolingParams, in order, as builtin types."""

    stream_id: str
    model_id: str
    prompt_token_ids: list[int]
    pooling: list[Any]
    adapter: NotRequired[AdapterRef | None]
    priority: NotRequired[int]


class Embedding(TypedDict):
    """A pooled output: ``data`` are little-endian float32 values of a tensor of ``shape``."""

    data: bytes
    shape: list[int]
    cached_tokens: int


class StartReport(TypedDict):
    """How an engine's last start went: where its weights came from (a tier, or ``checkpoint``), seconds by stage."""

    weights_from: str
    stages_s: dict[str, float]


class EngineDescription(TypedDict):
    """What a replica says of one of its engines.

    ``started_in_s`` is the last start's duration in seconds, ``requests`` how many sequences the engine has in hand.
    """

    state: EngineState
    reason: str | None
    supported_tasks: list[str]
    started_in_s: float | None
    restarts: int
    requests: int
    start: StartReport
