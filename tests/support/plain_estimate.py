"""Estimates as they are meant, one replica after another: what ``deployments.estimate`` must agree with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from deployments.estimate import EQUAL, FIRST_TOKEN_S, NO_ROOM_S, STALE_S
from deployments.wire import AdapterNews, EngineNews, ReplicaNews


@dataclass
class ReplicaView:
    """What a gateway knows of a replica."""

    engines: dict[str, EngineNews]
    room_bytes: int
    heard_s: float
    sent: dict[str, int]
    """By model, sequences that this gateway has sent since."""
    expected: dict[str, set[int]] = field(default_factory=dict)
    """By model, adapters that this gateway has asked for since it was told of others."""
    told: dict[str, AdapterNews | None] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> "ReplicaView":
        """Return the view of a replica that nothing has been heard of."""
        return cls({}, 0, -float("inf"), {})

    def hear(self, news: ReplicaNews, now_s: float) -> None:
        """Take news into account."""
        self.engines |= news.engines
        for model_id, engine in news.engines.items():
            if engine.adapters is None or self.told.get(model_id) != engine.adapters:
                self.expected.pop(model_id, None)
            self.told[model_id] = engine.adapters
        for model_id in news.gone:
            for known in (self.engines, self.expected, self.told):
                known.pop(model_id, None)  # type: ignore[attr-defined]
        self.room_bytes, self.heard_s = news.room_bytes, now_s
        self.sent.clear()

    def lose_engine(self, model_id: str) -> None:
        """Take an engine for cold, and for one that has no adapters."""
        engine = self.engines.get(model_id)
        if engine is None:
            return
        told = engine.adapters
        if told is not None:
            told = msgspec.structs.replace(told, slots=[], host=[], dram=[])
        self.engines[model_id] = msgspec.structs.replace(engine, state="cold", age_s=0.0, adapters=told)
        self.expected.pop(model_id, None)
        self.told.pop(model_id, None)


def first_token_s(view: ReplicaView, model_id: str, now_s: float) -> float | None:
    """Estimate the time to a first token in seconds; None if nothing can be said.

    That is queue + time to be awake + prefill: what the engine took for its last first tokens, grown as its load has.
    """
    engine = view.engines.get(model_id)
    if engine is None or now_s - view.heard_s > STALE_S:
        return None
    passed_s = engine.age_s + now_s - view.heard_s
    in_hand = engine.in_hand + view.sent.get(model_id, 0)
    prefill_s = (engine.first_token_s or FIRST_TOKEN_S) * (1 + in_hand) / (1 + engine.load)
    until_awake_s = {
        "awake": 0.0,
        "waking": max(0.0, engine.wake_s - passed_s),
        "starting": max(0.0, engine.start_s - passed_s),
        "asleep": engine.wake_s,
        "sleeping": engine.wake_s,
        "cold": engine.start_s,
        "stopping": engine.start_s,
    }.get(engine.state, float("inf"))
    no_room = engine.state in {"asleep", "sleeping", "cold", "stopping"} and engine.needs_bytes > view.room_bytes
    return until_awake_s + prefill_s + (NO_ROOM_S if no_room else 0.0)


def adapter_s(view: ReplicaView, model_id: str, key: int | None) -> float:
    """What a replica takes to have an adapter where it can be computed with, in seconds."""
    told = view.engines[model_id].adapters
    if key is None or told is None or key in view.expected.get(model_id, ()) or key in told.slots:
        return 0.0
    return told.host_s if key in told.host else told.dram_s if key in told.dram else told.elsewhere_s


def best(
    views: Mapping[str, ReplicaView], model_id: str, now_s: float, saved_s: Mapping[str, float], key: int | None
) -> list[str]:
    """The replicas with the least estimates and among them those that have the adapter nearest, by name."""
    estimates = {}
    adapters_s = {}
    for replica_id, view in views.items():
        estimate_s = first_token_s(view, model_id, now_s)
        if estimate_s is not None:
            adapters_s[replica_id] = adapter_s(view, model_id, key)
            estimates[replica_id] = max(0.0, estimate_s + adapters_s[replica_id] - saved_s.get(replica_id, 0.0))
    least_s = min(estimates.values(), default=0.0)
    equal = [replica_id for replica_id, estimate_s in estimates.items() if estimate_s <= least_s * EQUAL]
    nearest_s = min((adapters_s[replica_id] for replica_id in equal), default=0.0)
    return sorted(replica_id for replica_id in equal if adapters_s[replica_id] <= nearest_s)
