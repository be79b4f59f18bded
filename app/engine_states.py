"""What several replicas say of their engines, as one description of each model."""

from collections.abc import Iterable, Mapping

from deployments.types import NOT_STARTED, EngineDescription, EngineState

# The nearer to serving, the earlier: a model is as near as its nearest engine.
_NEAREST: tuple[EngineState, ...] = (
    "awake", "waking", "starting", "sleeping", "asleep", "stopping", "cold", "failed", "stopped",
)  # fmt: skip

UNHEARD_OF: EngineDescription = {
    "state": "cold",
    "reason": None,
    "supported_tasks": [],
    "started_in_s": None,
    "woken_in_s": None,
    "since_s": 0.0,
    "restarts": 0,
    "wakes": 0,
    "requests": 0,
    "waiting": 0,
    "arriving": 0,
    "arrived": 0,
    "awake_bytes": 0,
    "asleep_bytes": 0,
    "is_up": False,
    "tier": "",
    "nodes": [],
    "start": NOT_STARTED,
    "recent": [],
}
"""A model that was added just now, and no replica has heard of."""


def gone(engine: EngineDescription) -> EngineDescription:
    """Return what is left of an engine whose replica was given back: how it was, and that it is cold."""
    nothing = {"state": "cold", "reason": None, "since_s": 0.0, "requests": 0, "waiting": 0, "arriving": 0}
    return engine | nothing | {"awake_bytes": 0, "asleep_bytes": 0, "nodes": []}  # type: ignore[return-value]


def merged(replicas: Iterable[Mapping[str, EngineDescription]]) -> dict[str, EngineDescription]:
    """Return for each model the engine that is nearest to serving, with the counts of all of them."""
    engines: dict[str, list[EngineDescription]] = {}
    for replica in replicas:
        for model_id, engine in replica.items():
            engines.setdefault(model_id, []).append(engine)
    return {model_id: _merged(of_model) for model_id, of_model in engines.items()}


def _merged(engines: list[EngineDescription]) -> EngineDescription:
    nearest = min(engines, key=lambda engine: _NEAREST.index(engine["state"]))
    return {
        **nearest,
        "restarts": sum(engine["restarts"] for engine in engines),
        "wakes": sum(engine["wakes"] for engine in engines),
        "requests": sum(engine["requests"] for engine in engines),
        "waiting": sum(engine["waiting"] for engine in engines),
        "arriving": sum(engine["arriving"] for engine in engines),
        "arrived": sum(engine["arrived"] for engine in engines),
        "is_up": any(engine["is_up"] for engine in engines),
        "nodes": sorted({node for engine in engines for node in engine["nodes"]}),
        "recent": sorted((each for engine in engines for each in engine["recent"]), key=lambda each: each["at_s"]),
    }
