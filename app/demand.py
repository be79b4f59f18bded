"""What a gateway tells the forecaster each second: how many sequences were asked for, and how many tokens came.

Covers: counting by model and ``model:adapter``, pushing without anybody waiting, keeping counts while the forecaster is
away. Does not cover: what becomes of them (``autoscaler``).

A push is numbered and stays the same until it is acknowledged, so that one whose answer was lost counts once.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from autoscaler.actor import NAMESPACE
from autoscaler.errors import ReportError

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
ANSWER_S = 5.0
MAX_ROWS = 50_000
"""Seconds of series that are kept while nobody takes them: of many more, the oldest are forgotten."""
COARSE_S = 10
"""Beyond half of that, old seconds are kept as tens."""

Row = tuple[str, float, int, int]
Push = Callable[[str, int, list[Row], float, float], Awaitable[Any]]


@dataclass(frozen=True)
class _Batch:
    number: int
    rows: list[Row]
    since_s: float


class Demand:
    """One gateway's counts; one event loop. ``run`` first."""

    def __init__(self, source: str, push: Push, clock: Callable[[], float] = time.time) -> None:
        """``source`` is this gateway, also as against the one before it; ``push`` as ``ForecasterActor.push``."""
        self.forgotten = 0
        """Requests that were counted and could not be kept."""
        self._source = source
        self._push = push
        self._clock = clock
        self._counts: dict[tuple[int, str], list[int]] = {}
        self._since_s = clock()
        self._batch: _Batch | None = None
        self._number = 0
        self._pushing: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Begin to push."""
        self._pushing = asyncio.get_running_loop().create_task(self._push_on())

    def close(self) -> None:
        """Push no more."""
        if self._pushing is not None:
            self._pushing.cancel()

    def asked(self, model_id: str, adapter_id: str | None = None) -> None:
        """Count a sequence that was asked for."""
        self._add(model_id, adapter_id, 0, 1)

    def delivered(self, model_id: str, adapter_id: str | None, tokens: int) -> None:
        """Count the tokens of a sequence that has ended."""
        self._add(model_id, adapter_id, 1, tokens)

    async def push(self) -> bool:
        """Push what was counted; false if nobody took it, and then it is kept. Raises nothing of the forecaster's."""
        now_s = self._clock()
        batch = self._batch
        if batch is None:
            batch = self._batch = self._next(now_s)
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._push(self._source, batch.number, batch.rows, batch.since_s, now_s)
        except ReportError:
            # It would never take them: those after them shall not wait.
            logger.exception("the forecaster refuses counts")
            self.forgotten += sum(requests for _, _, requests, _ in batch.rows)
            self._batch = None
            return False
        except (RayError, ValueError, TimeoutError) as error:
            logger.debug("the forecaster takes no counts: %s", error)
            self._bound()
            return False
        self._batch = None
        return True

    def _add(self, model_id: str, adapter_id: str | None, place: int, number: int) -> None:
        series = model_id if adapter_id is None else f"{model_id}:{adapter_id}"
        key = (int(self._clock()), series)
        counted = self._counts.get(key)
        if counted is None:
            counted = self._counts[key] = [0, 0]
        counted[place] += number

    def _next(self, now_s: float) -> _Batch:
        rows: list[Row] = [
            (series, float(at_s), requests, tokens) for (at_s, series), (requests, tokens) in self._counts.items()
        ]
        self._counts.clear()
        self._number += 1
        since_s, self._since_s = self._since_s, now_s
        return _Batch(self._number, rows, since_s)

    def _bound(self) -> None:
        """Keep what is kept small: first seconds become tens, then the oldest go."""
        if len(self._counts) <= MAX_ROWS // 2:
            return
        coarse: dict[tuple[int, str], list[int]] = {}
        for (at_s, series), (requests, tokens) in self._counts.items():
            kept = coarse.setdefault((at_s - at_s % COARSE_S, series), [0, 0])
            kept[0] += requests
            kept[1] += tokens
        for key in sorted(coarse)[: max(0, len(coarse) - MAX_ROWS)]:
            self.forgotten += coarse.pop(key)[0]
        self._counts = coarse

    async def _push_on(self) -> None:
        while True:
            # What was kept goes out at once; else a second is a push.
            waited = self._batch is not None
            try:
                if await self.push() and waited:
                    continue
            except Exception:
                # Counting demand must never cost a request.
                logger.exception("counts could not be pushed")
                self._batch = None
            await asyncio.sleep(PERIOD_S)

    def __repr__(self) -> str:
        return f"<Demand of {self._source}, {len(self._counts)} rows to push>"


class NamedForecaster:
    """The forecaster as an actor of the cluster, found by its name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._actor: Any = None

    async def push(self, source: str, number: int, rows: list[Row], since_s: float, now_s: float) -> None:
        """See ``ForecasterActor.push``. Raises RayError, and ValueError if there is none."""
        await self._call("push", source, number, rows, since_s, now_s)

    async def plan(self, model: str | None) -> dict[str, Any]:
        """See ``ForecasterActor.plan``. Raises as ``push``."""
        return await self._call("plan", model)

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            self._actor = await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayError:
            # One that was created anew has another handle.
            self._actor = None
            raise
