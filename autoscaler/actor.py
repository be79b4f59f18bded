"""The forecaster: the Ray actor that keeps the arrival history, forecasts, and makes the plan.

Covers: its loops, and that none of them ends or holds up another. Does not cover: what is decided (``planner``,
``outlook``), NeuralProphet (``neural``, in a process of its own), who creates it and who asks (``app``, replicas,
``serve_policy``). Nobody who asks it waits for it: they go on without.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from autoscaler import neural
from autoscaler.config import AutoscalingConfig
from autoscaler.errors import AutoscalerError, ForecastError
from autoscaler.intake import Intake, Push
from autoscaler.nodes_ahead import NodesAhead
from autoscaler.outlook import Outlook, from_past, quantiles_of
from autoscaler.plan_metrics import PlanMetrics
from autoscaler.planner import Hosted, Planner
from autoscaler.reports import read_counts, read_report
from autoscaler.types import Floats, Past

logger = logging.getLogger(__name__)

NAMESPACE = "flashserve"
FORECASTER = "forecaster"
TICK_S = 1.0
SKEW_S = 60.0
"""Whose clock is wrong by more is taken to have counted by this one's."""
NODES_S = 5.0
DAY_S = 86400.0
PAST_S = 8 * DAY_S
FINE_BUCKETS = 240
FIT_TIMEOUT_S = 600.0
CHART_BUCKETS = 96
JUDGED_AGAIN = 24
"""Coarse buckets by which forecasters are judged at once after a restart."""
READ_TOGETHER = 200
ADAPTERS_RESTORED_S, ADAPTERS_BUCKET_S = 3 * 3600.0, 600
RESTORED_FROM = ((60, 14 * DAY_S, DAY_S), (10, DAY_S, 3600.0), (1, 3600.0, 0.0))
"""Resolution in seconds, from how long ago to how long ago: where gaps are learnt from after a restart."""


def forecaster_name(application: str) -> str:
    """Return the name of an application's forecaster, in ``NAMESPACE``."""
    return f"{FORECASTER}:{application}"


class ForecasterActor:
    """What Ray runs. Arguments and results are builtin types."""

    def __init__(self, config: dict[str, Any], history: str) -> None:
        """``history`` is the file of the arrival history; the fitted models are kept beside it."""
        self._config = AutoscalingConfig.model_validate(config)
        self._directory = Path(history).parent
        self._intake = Intake(Path(history))
        self._planner = Planner(self._config)
        self._quantiles = quantiles_of(self._config.quantile)
        self._steps = min(6, 2 + int(self._config.horizon_s // self._config.season_bucket_s))
        self._outlook = Outlook((), self._quantiles, self._steps)
        self._plan: dict[str, Any] = {}
        self._problems: dict[str, str] = {}
        self._least: dict[str, int] = {}
        self._fitted: Path | None = None
        self._nodes = NodesAhead(self._directory / ".nodes-asked")
        self._metrics = PlanMetrics()
        # One thread: SQLite has one writer, and arithmetic on all models must not take the other cores too.
        self._thread = ThreadPoolExecutor(1, "forecasts")
        self._fitting = ThreadPoolExecutor(1, "fit")
        loop = asyncio.get_running_loop()
        self._loops = [
            loop.create_task(self._every(TICK_S, "plan", self._tick)),
            loop.create_task(self._every(TICK_S, "writing", self._write)),
            loop.create_task(self._every(NODES_S, "nodes ahead", self._look_ahead)),
            loop.create_task(self._every(self._config.bucket_s, "recent level", self._see_fine)),
            loop.create_task(self._every(self._config.season_bucket_s, "season", self._see_coarse)),
        ]
        if self._config.neural:
            loop.create_task(asyncio.to_thread(_forget_unfinished, self._directory)).add_done_callback(_noted)
            self._loops.append(loop.create_task(self._every(self._config.refit_s, neural.NAME, self._refit)))

    async def serves(
        self, models: dict[str, tuple[str, int]], pools: dict[str, tuple[int, int, dict[str, float]]]
    ) -> None:
        """Take what is served.

        Of each model its pool and the sequences of an engine; of each pool how many replicas it has at least and may
        have at most, and what one asks of Ray.
        """
        self._least = {pool: least for pool, (least, _, _) in pools.items()}
        self._planner.most = {pool: most for pool, (_, most, _) in pools.items()}
        self._nodes.pools = {pool: resources for pool, (_, _, resources) in pools.items()}
        new = sorted(models.keys() - set(self._planner.models()))
        busy: dict[str, list[tuple[float, int]]] = {}
        if new:
            # Before they are planned for, because whoever has learnt of now learns no more of the past.
            await self._guarded("what was learnt", lambda: self._remember(new, busy))
        self._planner.serves({model: Hosted(*each) for model, each in models.items()})
        for model, seconds in busy.items():
            self._planner.restore(model, seconds)
        if new:
            await self._guarded("what was learnt of adapters", lambda: self._remember_adapters(new))

    async def push(self, source: str, number: int, counts: list[Any], since_s: float, now_s: float) -> None:
        """Take counts: rows of (series, at_s, requests, tokens); see ``Push``. Raises ReportError."""
        ahead_s = now_s - time.time()
        if abs(ahead_s) < SKEW_S:
            ahead_s = 0.0
        rows = (replace(count, at_s=count.at_s - ahead_s) for count in read_counts(counts))
        push = Push(source, number, tuple(rows), now_s - ahead_s, since_s - ahead_s)
        if self._intake.take(push):
            self._planner.learn(push.counts)

    async def hear(self, report: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Take what a replica says of itself, and return its orders by model. Raises ReportError."""
        orders = self._planner.hear(read_report(report), time.time())
        return {model: msgspec.to_builtins(order) for model, order in orders.items()}

    async def leave(self, replica_id: str) -> None:
        """Take it that a replica ends: what it had is not there any more, which would be noticed seconds later."""
        self._planner.leave(replica_id)

    async def plan(self, model: str | None = None) -> dict[str, Any]:
        """Return the last plan with its reasons; with ``model``, for it alone and with its demand lately."""
        age_s = time.time() - self._plan["made_at_s"] if self._plan else None
        plan = self._plan | {
            "age_s": age_s,
            "problems": self._problems | ({"history": self._intake.problem} if self._intake.problem else {}),
            "prewarms": self._planner.prewarms(),
            "nodes_ahead": self._nodes.asked,
        }
        if model is None:
            return plan
        known = plan.get("models", {}).get(model)
        told = {} if known is None else known | {"demand": await self._demand(model)}
        return plan | {"models": {model: told} if told else {}}

    async def pool_plan(self, pool: str) -> dict[str, Any] | None:
        """Return what Serve's policy wants to know of a pool; None before the first plan."""
        found: dict[str, Any] | None = self._plan.get("pools", {}).get(pool)
        return found

    async def engines_ahead(self) -> list[str]:
        """Return the models of which an engine should be started now, ahead of its replica."""
        return [model for model, told in self._plan.get("models", {}).items() if told["engine_ahead"]]

    async def close(self) -> None:
        """Withdraw what was asked of Ray's autoscaler and write what waits; the actor ends afterwards."""
        for each in self._loops:
            each.cancel()
        await self._on_thread(lambda: self._intake.write(time.time()))
        await asyncio.to_thread(self._nodes.withdraw)

    async def _tick(self) -> None:
        now_s = time.time()
        self._planner.expected = self._outlook.expected_per_s(now_s)
        steps = max(1, min(60, int(self._config.horizon_s // self._config.bucket_s)))
        self._planner.upper = self._outlook.upper_per_s(now_s, self._config.bucket_s, steps)
        plan = self._planner.tick(now_s)
        known = set(self._outlook.models)
        for model, told in plan["models"].items():
            told["forecast"] = self._outlook.describe(model) if model in known else None
        self._plan = plan
        self._metrics.show(plan)

    async def _write(self) -> None:
        await self._on_thread(lambda: self._intake.write(time.time()))

    async def _look_ahead(self) -> None:
        if self._plan:
            planned = self._plan["pools"]
            # A pool that nobody needs has its replicas nevertheless.
            need = {pool: [least, *planned.get(pool, {}).get("need", ())] for pool, least in self._least.items()}
            await asyncio.to_thread(self._nodes.follow, need)

    async def _see_fine(self) -> None:
        now_s = time.time()
        self._planner.bucket(now_s)
        models = self._planner.models()
        bucket_s = self._config.bucket_s
        if models != self._outlook.models:
            await self._renew(models, now_s)
        past = await self._on_thread(lambda: self._past(models, bucket_s, now_s, FINE_BUCKETS * bucket_s))
        if past.counts.shape[0]:
            await self._on_thread(lambda: self._outlook.see_fine(past))

    async def _renew(self, models: tuple[str, ...], now_s: float) -> None:
        outlook = Outlook(models, self._quantiles, self._steps)
        self._outlook = outlook
        if models:
            past = await self._on_thread(lambda: self._past(models, self._config.season_bucket_s, now_s, PAST_S))
            await self._on_thread(lambda: from_past(outlook, past, JUDGED_AGAIN))
            await self._on_thread(lambda: outlook.see_coarse(past))

    async def _see_coarse(self) -> None:
        outlook, now_s = self._outlook, time.time()
        if not outlook.models:
            return
        past = await self._on_thread(lambda: self._past(outlook.models, self._config.season_bucket_s, now_s, PAST_S))
        said = await self._neural_says(outlook.models, past)
        if self._outlook is outlook:
            await self._on_thread(lambda: outlook.see_coarse(past, said))

    async def _neural_says(self, models: tuple[str, ...], past: Past) -> Floats | None:
        fitted = self._fitted
        if fitted is None:
            return None
        recent = Past(past.counts[:, -4 * self._shape().lags :], past.step_s, past.end_s)
        try:
            said = await self._on_thread(lambda: neural.predict(fitted, recent, models))
        except ForecastError as error:
            self._problems[neural.NAME] = str(error)
            return None
        return said[:, -1]

    async def _refit(self) -> None:
        """Fit on all the past; what takes long or fails leaves the version before in use."""
        models, now_s = self._outlook.models, time.time()
        past = await self._on_thread(lambda: self._past(models, self._config.season_bucket_s, now_s, PAST_S))
        shape = self._shape()
        counted = int(np.isfinite(past.counts).sum(axis=1).max(initial=0))
        if counted * past.step_s < DAY_S:
            # Less than a day says nothing of days.
            return
        directory = self._directory / "neural"
        self._fitted = await asyncio.get_running_loop().run_in_executor(
            self._fitting, lambda: neural.fit(past, models, shape, directory, timeout_s=FIT_TIMEOUT_S)
        )

    def _shape(self) -> neural.Shape:
        return neural.Shape(steps=self._steps, quantiles=self._quantiles)

    def _past(self, models: tuple[str, ...], bucket_s: int, now_s: float, length_s: float) -> Past:
        return self._intake.read(models, bucket_s, now_s - length_s, now_s)

    async def _demand(self, model: str) -> dict[str, Any]:
        """Return what was counted of a model lately, for a chart."""
        now_s, step_s = time.time(), self._config.bucket_s
        length_s = CHART_BUCKETS * step_s
        past = await self._on_thread(lambda: self._intake.read([model], step_s, now_s - length_s, now_s))
        known = [float(each) if np.isfinite(each) else None for each in past.counts[0]]
        return {"step_s": step_s, "end_s": past.end_s, "requests": known}

    async def _remember(self, models: list[str], busy: dict[str, list[tuple[float, int]]]) -> None:
        """Read when models were asked for, and how often, into ``busy``."""
        now_s = time.time()
        for bucket_s, from_s, to_s in RESTORED_FROM:
            for first in range(0, len(models), READ_TOGETHER):
                some = models[first : first + READ_TOGETHER]
                past = await self._on_thread(partial(self._intake.read, some, bucket_s, now_s - from_s, now_s - to_s))
                first_s = past.end_s - past.buckets * past.step_s
                for row, bucket in zip(*(past.counts > 0).nonzero(), strict=True):
                    at_s, requests = first_s + int(bucket) * past.step_s, int(past.counts[row, bucket])
                    busy.setdefault(some[row], []).append((at_s, requests))

    async def _remember_adapters(self, models: list[str]) -> None:
        """Tell the planner what shares the models' adapters had lately."""

        def read() -> tuple[list[str], Past]:
            series = models + self._intake.adapters_of(models)
            now_s = time.time()
            return series, self._intake.read(series, ADAPTERS_BUCKET_S, now_s - ADAPTERS_RESTORED_S, now_s)

        series, past = await self._on_thread(read)
        first_s = past.end_s - past.buckets * past.step_s
        for row, bucket in zip(*(past.counts > 0).nonzero(), strict=True):
            self._planner.learn_share(series[row], first_s + int(bucket) * past.step_s, int(past.counts[row, bucket]))

    async def _on_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _every(self, period_s: float, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Work again and again; what goes wrong is told, and never ends it."""
        while True:
            await self._guarded(what, work)
            # On the period's own beat: buckets end there.
            await asyncio.sleep(period_s - time.time() % period_s)

    async def _guarded(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except AutoscalerError as error:
            if self._problems.get(what) != str(error):
                logger.warning("%s: %s", what, error)
            self._problems[what] = str(error)
        except Exception as error:
            # Of what is broken here the plan tells; the other loops go on, and this one with its next turn.
            logger.exception("%s failed", what)
            self._problems[what] = f"{type(error).__name__}: {error}"
        else:
            self._problems.pop(what, None)

    def __repr__(self) -> str:
        return f"<ForecasterActor {self._planner!r}>"


def _forget_unfinished(directory: Path) -> None:
    """Remove what a fit that was killed has left."""
    for rest in (directory / "neural").glob("*.new"):
        with contextlib.suppress(OSError):
            rest.unlink()


def _noted(done: "asyncio.Task[None]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.warning("process %d could not clear up: %s", os.getpid(), error)
