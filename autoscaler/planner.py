"""The plan: for every model what each of its engines is told, for every pool how many replicas will be needed when.

Covers: putting learners, forecasts, reports of replicas, the policy and the knapsack together, as plain data with
``now_s`` passed in. Does not cover: where any of it comes from (``actor``), carrying it out (replicas, Serve's policy),
which may refuse.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace

from autoscaler.adapter_shares import AdapterShares
from autoscaler.ahead import Ahead
from autoscaler.config import AutoscalingConfig
from autoscaler.errors import ReportError
from autoscaler.idle import Gaps, bin_of
from autoscaler.layers import AWAKE, Layer
from autoscaler.learner import Learner
from autoscaler.plan import Room, Wish, plan
from autoscaler.policy import Decision, EngineAt, Load
from autoscaler.reports import COLDEST, EngineReport, Order, ReplicaReport
from autoscaler.types import Count, Floats
from autoscaler.whereabouts import Place, Whereabouts

SILENT_S = 10.0
"""A replica that has said nothing for so long is not reckoned with."""
RESOLUTION_S = 1.0
"""Counts are of whole seconds, so engines are ready by so much earlier, and stay for so much longer."""
LONGEST_S = 600.0
"""What is decided for longer is decided again."""
ASKED_S = 10.0
"""So long after it was asked for, a model without a replica is worth an engine ahead of one."""
MAX_STEPS = 60
MOST_REPLICAS = 1000
MOST_PER_S = 1e9
RESTORED = 300
"""Busy seconds of a model that are learnt from again after a restart; older gaps have faded."""
FIRST_START_S = 10.0
FIRST_WAKE_S = 0.3


@dataclass(frozen=True)
class Hosted:
    """A model that is served: by which pool, and how many sequences one engine of it works on at once."""

    pool: str
    slots: int


@dataclass
class _Span:
    """When an engine of a level is to be awake unasked; void once the level was asked for since."""

    from_s: float
    until_s: float
    quiet_since_s: float


@dataclass
class _Model:
    learner: Learner
    hosted: Hosted
    spans: dict[int, _Span] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    adapters: AdapterShares = field(default_factory=AdapterShares)
    there_until_s: float = -math.inf
    """When it last had an engine, of whatever state, on some replica."""


@dataclass
class _Heard:
    report: ReplicaReport
    at_s: float
    orders: dict[str, tuple[Order, float]] = field(default_factory=dict)


class Planner:
    """Learns and decides for all models; not thread-safe."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self.config = config
        self.expected: Mapping[str, float] = {}
        """Requests a second that are forecast, by model; without an entry there is no forecast."""
        self.upper: Mapping[str, Sequence[float]] = {}
        """The same at the configured quantile, by bucket from now on."""
        self.most: Mapping[str, int] = {}
        """How many replicas a pool may have."""
        self._shared = Gaps.none(fade=0.9999)
        self._models: dict[str, _Model] = {}
        self._replicas: dict[str, _Heard] = {}
        self._where = Whereabouts()

    def __repr__(self) -> str:
        return f"<Planner of {len(self._models)} models on {len(self._replicas)} replicas>"

    def serves(self, models: Mapping[str, Hosted]) -> None:
        """Plan for these models from now on, and no others."""
        for gone in self._models.keys() - models.keys():
            del self._models[gone]
        for model_id, hosted in models.items():
            known = self._models.get(model_id)
            if known is None:
                self._models[model_id] = _Model(Learner(self._ahead(model_id, hosted), self._shared), hosted)
            else:
                known.hosted = hosted
                known.learner.ahead.slots = hosted.slots

    def models(self) -> tuple[str, ...]:
        """Return the models that are planned for."""
        return tuple(self._models)

    def learn(self, counts: Iterable[Count]) -> None:
        """Take what was counted; adapters count for their models."""
        merged: dict[tuple[float, str], int] = {}
        for count in counts:
            key = (count.at_s, count.series.partition(":")[0])
            merged[key] = merged.get(key, 0) + count.requests
            if ":" in count.series:
                self.learn_share(count.series, count.at_s, count.requests)
        for (at_s, model_id), requests in sorted(merged.items()):
            self.learn_share(model_id, at_s, requests)
            if model_id in self._models:
                self._models[model_id].learner.came(at_s, requests)

    def restore(self, model_id: str, busy: Sequence[tuple[float, int]]) -> None:
        """Learn of a model what was counted before this began: (when, how many) of its last busy seconds, in order."""
        model = self._models.get(model_id)
        if model is not None:
            for at_s, requests in busy[-RESTORED:]:
                # Counts of longer ago are of more than a second, which would look like more engines in use.
                model.learner.came(at_s, min(requests, model.hosted.slots))

    def learn_share(self, series: str, at_s: float, requests: int) -> None:
        """Take requests for an adapter (``model:adapter``), or for a model with those for its adapters."""
        model_id, _, adapter = series.partition(":")
        if model_id not in self._models:
            return
        shares = self._models[model_id].adapters
        if adapter:
            shares.of_adapter(adapter, at_s, requests)
        else:
            shares.of_model(at_s, requests)

    def hear(self, report: ReplicaReport, now_s: float) -> dict[str, Order]:
        """Take what a replica says of itself; return what it is told, of models that are more than cold there.

        Raises:
            ReportError: it only says what has changed since a time that this planner knows nothing of.
        """
        heard = self._replicas.get(report.replica_id)
        if report.is_change and heard is None:
            raise ReportError(f"changes of replica '{report.replica_id}', which is not known")
        gone = report.gone if report.is_change else self._where.on(report.replica_id).keys() - report.engines.keys()
        self._where.hear(report.replica_id, report.engines, gone, is_limited=bool(report.budget_bytes))
        if heard is None:
            heard = self._replicas[report.replica_id] = _Heard(report, now_s)
        heard.report, heard.at_s = report, now_s
        for model_id, engine in report.engines.items():
            if model_id in self._models and engine.served > 0 and 0 < engine.served_s < math.inf:
                for _ in range(min(engine.served, 10)):
                    self._models[model_id].learner.ahead.served_in(engine.served_s)
        return {model_id: _relative(order, made_s, now_s) for model_id, (order, made_s) in heard.orders.items()}

    def leave(self, replica_id: str) -> None:
        """Reckon no longer with a replica that ends; harmless for one that isn't known."""
        self._replicas.pop(replica_id, None)
        self._where.lose(replica_id)

    def bucket(self, now_s: float) -> None:
        """End a bucket of counting."""
        for model in self._models.values():
            model.learner.bucket(now_s)

    def tick(self, now_s: float) -> dict[str, Any]:
        """Decide anew; return the plan as builtin types, with reasons."""
        for silent in [key for key, heard in self._replicas.items() if abs(now_s - heard.at_s) > SILENT_S]:
            self.leave(silent)
        for heard in self._replicas.values():
            heard.orders = {}
        engines: dict[str, Floats] = {}
        for model_id, model in self._models.items():
            awake = engines.setdefault(model.hosted.pool, np.zeros(self._steps()))
            for first, end, number in self._decide(model_id, model, now_s):
                np.maximum(awake[first:end], number, out=awake[first:end])
        for heard in self._replicas.values():
            self._fit(heard)
        return {
            "made_at_s": now_s,
            "models": {model_id: model.told for model_id, model in self._models.items()},
            "pools": {pool: self._need(pool, each) for pool, each in engines.items()},
            "replicas": {key: heard.report.pool for key, heard in self._replicas.items()},
        }

    def prewarms(self) -> dict[str, float]:
        """Return the outcomes of prewarms on all replicas that are there."""
        summed: dict[str, float] = {}
        for heard in self._replicas.values():
            for outcome, number in heard.report.prewarms.items():
                summed[outcome] = summed.get(outcome, 0.0) + number
        return summed

    def _ahead(self, model_id: str, hosted: Hosted) -> Ahead:
        return Ahead(
            _layers(FIRST_WAKE_S, FIRST_START_S, 0.0),
            hosted.slots,
            self.config.waiting_worth,
            self._shared,
            expected_of=lambda _: _usable(self.expected.get(model_id)),
            recheck_s=float(self.config.bucket_s),
            patience_s=self.config.patience_s,
        )

    def _decide(self, model_id: str, model: _Model, now_s: float) -> list[tuple[int, int, int]]:
        """Set the orders of a model's engines; return from which step to which how many should be awake."""
        learner, ahead = model.learner, model.learner.ahead
        # Cold engines beyond those that were ever needed at once are left as they are, and not even looked at.
        there = self._where.foremost(model_id, max(1, len(learner.free_at_s)))
        if there:
            awake_bytes, asleep_bytes = self._where.most_bytes(model_id)
            share = asleep_bytes / awake_bytes if self._where.is_limited(model_id) and awake_bytes > 0 else 0.0
            ahead.retime(_layers(*_measured(there[0].engine), min(1.0, share)))
        ahead.limit = max(1, self._where.number(model_id))
        views = [self._view(model, level, place, now_s) for level, place in enumerate(there)]
        load = Load(
            sum(each.engine.in_hand for each in there), sum(each.engine.waiting for each in there), ahead.slots, 0.0
        )
        decision = ahead.decide(views, load, now_s)
        steps, step_s = self._steps(), float(self.config.bucket_s)
        awake = [(0, 1, decision.measured)] if decision.measured else []
        # Who has just asked waits for a replica; and one that isn't there can't start what it would be time to start.
        wants_ahead = not there and now_s - learner.quiet_since_s(0) < ASKED_S
        if there:
            model.there_until_s = now_s
        elif wants_ahead and learner.newest_s + RESOLUTION_S >= model.there_until_s:
            # At once: gateways tell Serve of load every ten seconds. Not for who asked the replica that has just gone.
            awake.append((0, 1, 1))
        for level in range(len(there) + 1):
            place = there[level] if level < len(there) else None
            if place is not None and place.in_use:
                continue
            if level > 0 and place is None and learner.quiet_since_s(level) == -math.inf:
                break
            span = self._span(model, level, COLDEST if place is None else place.engine.layer, now_s)
            if place is not None:
                self._order(place, model_id, level, span, now_s)
            if span is None:
                continue
            wants_ahead |= place is None and span.from_s <= now_s
            first = max(0, int((span.from_s - now_s) // step_s))
            if first < steps:
                awake.append((first, math.ceil((span.until_s - now_s) / step_s), level + 1))
        floor = max((number for _, _, number in awake), default=0)
        model.told = self._told(model_id, model, there, decision, floor, now_s)
        model.told["engine_ahead"] = self.config.engines_ahead and wants_ahead and self._may_grow(model.hosted.pool)
        return awake

    def _may_grow(self, pool: str) -> bool:
        replicas = sum(heard.report.pool == pool for heard in self._replicas.values())
        return replicas < self.most.get(pool, MOST_REPLICAS)

    def _view(self, model: _Model, level: int, place: Place, now_s: float) -> EngineAt:
        span = model.spans.get(level)
        kept_s = span.until_s if span is not None and span.from_s <= now_s else -math.inf
        idle_since_s = None if place.in_use else min(now_s, model.learner.quiet_since_s(level))
        return EngineAt(place.engine.layer, idle_since_s, place.engine.is_starting, kept_s)

    def _span(self, model: _Model, level: int, layer: int, now_s: float) -> _Span | None:
        """Return when the level is to be awake; one that has begun is kept to its end, so that nothing flaps."""
        quiet_since_s = model.learner.quiet_since_s(level)
        if quiet_since_s == -math.inf:
            model.spans.pop(level, None)
            return None
        known = model.spans.get(level)
        if known is not None and known.quiet_since_s == quiet_since_s and known.from_s <= now_s < known.until_s:
            return known
        age_s = max(0.0, now_s - quiet_since_s)
        way, _ = model.learner.ahead.outlook(level, now_s)
        found = way.awake_span(age_s, layer)
        if found is None:
            model.spans.pop(level, None)
            return None
        from_s = max(now_s, quiet_since_s + found[0] - RESOLUTION_S)
        until_s = min(quiet_since_s + found[1] + RESOLUTION_S, from_s + LONGEST_S)
        model.spans[level] = _Span(from_s, until_s, quiet_since_s)
        return model.spans[level]

    def _order(self, place: Place, model_id: str, level: int, span: _Span | None, now_s: float) -> None:
        learner, adapters = self._models[model_id].learner, self._models[model_id].adapters.largest()
        _, hazard = learner.ahead.outlook(level, now_s)
        age_s = now_s - learner.quiet_since_s(level)
        expected_per_s = float(hazard[bin_of(age_s)]) if math.isfinite(age_s) else 0.0
        if span is None:
            order = Order(expected_per_s, 0.0, 0.0, "not expected soon", adapters)
        else:
            begins_s, ends_s = span.from_s - span.quiet_since_s, span.until_s - span.quiet_since_s
            reason = f"quiet for {age_s:.0f} s, worth being awake from {begins_s:.0f} to {ends_s:.0f} s"
            in_s, for_s = max(0.0, span.from_s - now_s), max(0.0, span.until_s - max(now_s, span.from_s))
            order = Order(expected_per_s, in_s, for_s, reason, adapters)
        self._replicas[place.replica_id].orders[model_id] = (order, now_s)

    def _fit(self, heard: _Heard) -> None:
        """Where not all that is wanted now fits a replica, let go what saves the least waiting for its room."""
        budget_bytes = heard.report.budget_bytes
        if not budget_bytes:
            return
        wishes = []
        engines = self._where.on(heard.report.replica_id)
        for model_id, (order, _) in heard.orders.items():
            engine = engines[model_id]
            if order.for_s <= 0 or order.in_s > 0 or engine.layer == AWAKE:
                continue
            burst = self._models[model_id].learner.ahead.habits.burst(0)
            saves_s = engine.wake_s if engine.layer == 1 else engine.start_s
            share = max(0, engine.awake_bytes - engine.asleep_bytes) / budget_bytes
            wishes.append(Wish("wake", model_id, max(order.expected_per_s, 1e-6), saves_s, burst, share, 0))
        chosen = plan(wishes, [], Room(max(0, heard.report.room_bytes) / budget_bytes, 0))
        for wish in chosen.passed_over:
            reason = "others save more waiting in the room there is"
            order, made_s = heard.orders[wish.name]
            heard.orders[wish.name] = (replace(order, in_s=0.0, for_s=0.0, reason=reason), made_s)
            self._models[wish.name].told["reason"] = reason

    def _need(self, pool: str, engines: Floats) -> dict[str, Any]:
        """Return how many replicas the pool needs in each step: an engine of each model, and Little's law over all."""
        steps = self._steps()
        working = [0.0] * steps
        for model_id, model in self._models.items():
            if model.hosted.pool != pool:
                continue
            rates = self.upper.get(model_id, ())
            for step in range(min(steps, len(rates))):
                rate_per_s = min(MOST_PER_S, _usable(rates[step]) or 0.0)
                working[step] += rate_per_s * model.learner.ahead.habits.service_s
        # Less than one sequence at a time is no reason for a replica: whether one is worth it, engines say.
        sustained = [each / self.config.target_ongoing_requests if each >= 1 else 0.0 for each in working]
        most = self.most.get(pool, MOST_REPLICAS)
        need = [math.ceil(min(most, max(engines[step], sustained[step]))) for step in range(steps)]
        return {
            "step_s": float(self.config.bucket_s),
            "need": need,
            "working": [round(each, 3) for each in working],
            "ongoing": sum(
                self._where.ongoing(replica_id)
                for replica_id, heard in self._replicas.items()
                if heard.report.pool == pool
            ),
        }

    def _steps(self) -> int:
        return max(1, min(MAX_STEPS, math.ceil(self.config.horizon_s / self.config.bucket_s)))

    def _told(  # noqa: PLR0913, PLR0917 - what there is to tell
        self,
        model_id: str,
        model: _Model,
        there: Sequence[Place],
        decision: Decision,
        floor: int,
        now_s: float,
    ) -> dict[str, Any]:
        quiet_since_s = model.learner.quiet_since_s(0)
        span = model.spans.get(0)
        return {
            "pool": model.hosted.pool,
            "engines": {place.replica_id: place.engine.state for place in there},
            "measured": decision.measured,
            "floor": floor,
            "reason": decision.reason,
            "quiet_s": round(now_s - quiet_since_s, 1) if math.isfinite(quiet_since_s) else None,
            "awake_in_s": round(max(0.0, span.from_s - now_s), 1) if span else None,
            "awake_for_s": round(span.until_s - max(now_s, span.from_s), 1) if span else None,
            "gaps_seen": model.learner.ahead.habits.gaps[0].seen if model.learner.ahead.habits.gaps else 0,
            "service_s": round(model.learner.ahead.habits.service_s, 3),
            "rate_per_s": model.learner.ahead.habits.rate_per_s,
            "expected_per_s": _usable(self.expected.get(model_id)),
        }


def _relative(order: Order, made_s: float, now_s: float) -> Order:
    passed_s = max(0.0, now_s - made_s)
    in_s = order.in_s - passed_s
    return replace(order, in_s=max(0.0, in_s), for_s=max(0.0, order.for_s + min(0.0, in_s)))


def _measured(engine: EngineReport) -> tuple[float, float]:
    """Return how long waking and starting take."""
    return _usable(engine.wake_s) or FIRST_WAKE_S, _usable(engine.start_s) or FIRST_START_S


def _layers(wake_s: float, start_s: float, asleep_share: float) -> tuple[Layer, ...]:
    return Layer("awake", 0.0, 1.0), Layer("asleep", wake_s, asleep_share), Layer("dram", max(wake_s, start_s), 0.0)


def _usable(rate_per_s: float | None) -> float | None:
    """A forecast that is no number, or less than nothing, is none."""
    return rate_per_s if rate_per_s is not None and math.isfinite(rate_per_s) and rate_per_s >= 0 else None
