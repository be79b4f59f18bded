"""Plain data that crosses process borders: what a replica is told to host, and what a gateway asks of it.

Everything a request carries is a builtin type, so neither side unpickles the other's classes.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

# How a stream comes from another replica: it is about to, or goes on here after a move or a loss.
Arrival = Literal["prepared", "resumed"]
EngineState = Literal["cold", "starting", "awake", "sleeping", "asleep", "waking", "stopping", "failed", "stopped"]


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter of a model.

    ``path`` is where it comes from, a directory in PEFT layout or a remote one, and ``digest`` the SHA-256 of what was
    found there. ``owner`` is the tenant whose it is; None for the operator's, for whoever may use it.
    """

    id: str
    path: str
    digest: str
    owner: str | None = None
    rank: int = 0
    size_bytes: int = 0


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
    # Sequences of usual length that its KV cache is to have room for.
    concurrency: int = 8
    adapters: tuple[AdapterSpec, ...] = ()
    device: Literal["cpu", "gpu"] = "cpu"
    source: str = ""
    # Seconds without a request after which it may sleep; None: only when others need the room.
    keep_awake_s: float | None = None
    ttft_slo_s: float = 1.0
    pin: Literal["gpu", "dram", "disk"] | None = None
    # What it takes while awake, until it was measured.
    awake_bytes: int = 0
    # Where its engine keeps what it compiles and measures, for the next one; vLLM's own place if there is none.
    cache_dir: str = ""
    # Where the node keeps its adapters as engines compute with them, and how much of them; its own memory if empty.
    adapters_in: str = ""
    adapters_bytes: int = 0
    # Compute from one copy of the weights with other engines of the model: on a CPU from the node's, slower than from a
    # packed copy of its own; on a GPU from the first engine's on that device.
    shares_weights: bool = False

    @property
    def model_id(self) -> str:
        """The model that it is an engine of; a tenant's own has an id with more behind that."""
        return self.id.partition("@")[0]

    @cached_property
    def revision(self) -> str:
        """What is the same for specs that one engine can serve: requests made for another must not reach it."""
        judged = replace(self, adapters=(), keep_awake_s=None, ttft_slo_s=1.0, pin=None, awake_bytes=0)
        return hashlib.sha256(repr(judged).encode()).hexdigest()[:16]


class ReplyTo(TypedDict):
    """Where a gateway listens for token deltas; ``key`` proves that the replica was asked by that gateway."""

    host: str
    port: int
    key: str


class AdapterRef(TypedDict):
    """An adapter as a request names it; the replica gives it an integer id of its own.

    ``path`` is where it comes from: each node has a copy of its own, by the digest.
    ``owner`` is the tenant whose it is; without one it is the operator's, for whoever may use it.
    """

    id: str
    path: str
    digest: str
    owner: NotRequired[str | None]


class Place(TypedDict):
    """Where a request wants to go, by Serve's ids of replicas; one that isn't there is no reason to fail.

    With ``only`` it waits for its replica while that has all it can take.
    """

    replica_id: NotRequired[str | None]
    avoid_id: NotRequired[str | None]
    only: NotRequired[bool]


class GenerateRequest(TypedDict):
    """One sequence to generate.

    ``sampling`` holds the fields of vLLM's SamplingParams as builtin types; ``revision`` is that of the model's spec
    the prompt was made for. ``delivered_token_ids`` are output tokens that came out of an earlier attempt: the engine
    goes on behind them, as if it had made them itself, and yields only what is new. With ``prepares`` it is for
    a stream that is to move here: what exists is computed, and nobody takes what comes of it. ``traceparent`` is the
    W3C header of the span that this is asked for in; without one nobody traces it.
    """

    stream_id: str
    model_id: str
    prompt_token_ids: list[int]
    sampling: dict[str, Any]
    reply_to: ReplyTo
    revision: NotRequired[str]
    adapter: NotRequired[AdapterRef | None]
    priority: NotRequired[int]
    cache_salt: NotRequired[str | None]
    tenant: NotRequired[str]
    keep_awake_s: NotRequired[float | None]
    delivered_token_ids: NotRequired[list[int]]
    prepares: NotRequired[bool]
    place: NotRequired[Place]
    traceparent: NotRequired[str | None]


class MoveRequest(TypedDict):
    """Asks a replica to have its streams of a model taken elsewhere."""

    model_id: str
    place: NotRequired[Place]


class ModelCommand(TypedDict):
    """An administrator's command for one model, on one replica."""

    model_id: str
    place: NotRequired[Place]


class DescribeRequest(TypedDict):
    """Asks a certain replica to describe itself."""

    place: NotRequired[Place]


class NewsRequest(TypedDict):
    """Asks a replica to tell a gateway how things stand with it."""

    reply_to: ReplyTo
    place: NotRequired[Place]


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
    revision: NotRequired[str]
    adapter: NotRequired[AdapterRef | None]
    priority: NotRequired[int]
    cache_salt: NotRequired[str | None]
    tenant: NotRequired[str]
    traceparent: NotRequired[str | None]


class Embedding(TypedDict):
    """A pooled output: ``data`` are little-endian float32 values of a tensor of ``shape``."""

    data: bytes
    shape: list[int]
    cached_tokens: int


class StartReport(TypedDict):
    """How an engine's last start went, by stage in seconds, and where its weights came from.

    ``begins_s`` says when a stage began, in seconds since the start did. ``wake_stages_s`` are the last wake's, which
    come one after the other.

    ``weights_from`` is the tier that it maps, or ``checkpoint``; ``found_in`` the tier in which the last start or wake
    found its snapshot (``snapshot_id``), before it was brought nearer.
    """

    weights_from: str
    found_in: str
    snapshot_id: str
    stages_s: dict[str, float]
    begins_s: dict[str, float]
    wake_stages_s: dict[str, float]


class StartEvent(TypedDict):
    """A start, or a wake, that has ended well: when, by the clock, how long it took, and from which tier.

    ``stages_s`` are how long its stages took, ``begins_s`` when they began, in seconds since it did: some stages of a
    start are within others, or beside them.
    """

    kind: Literal["start", "wake"]
    at_s: float
    took_s: float
    tier: str
    stages_s: dict[str, float]
    begins_s: dict[str, float]


NOT_STARTED: StartReport = {
    "weights_from": "", "found_in": "", "snapshot_id": "", "stages_s": {}, "begins_s": {}, "wake_stages_s": {},
}  # fmt: skip


class EngineDescription(TypedDict):
    """What a replica says of one of its engines.

    ``since_s`` is how long it has been in its state, ``started_in_s`` and ``woken_in_s`` how long a start and a wake
    take from where its snapshot is (None: never measured), ``requests`` how many sequences the engine has in hand,
    ``waiting`` how many wait for it to be awake, ``arriving`` how many are about to move here, ``arrived`` how many
    have gone on here after a move or a loss elsewhere, ``awake_bytes`` and ``asleep_bytes`` the memory it held when it
    was last so (0: never was). ``is_up`` says whether it has been awake once and hasn't failed since, so that requests
    can be held. ``tier`` is where its snapshot is now, ``nodes`` the nodes on which it holds memory, ``recent`` how it
    became ready the last few times.
    """

    state: EngineState
    reason: str | None
    supported_tasks: list[str]
    started_in_s: float | None
    woken_in_s: float | None
    since_s: float
    restarts: int
    wakes: int
    requests: int
    waiting: int
    arriving: int
    arrived: int
    awake_bytes: int
    asleep_bytes: int
    is_up: bool
    tier: str
    nodes: list[str]
    start: StartReport
    recent: list[StartEvent]
