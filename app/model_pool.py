"""What the requests for one model have in common: where they are asked for, what that cost, who is asked for again.

Covers: carrying out what ``resumption`` decides, requests without a stream. Does not cover: streams (``carrier``).
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from app.attempts import as_vllm_error, failure_of, translated
from app.demand import Demand
from app.errors import AppError, RequestEndsEnginesError
from app.fair_queue import FairQueue
from app.migration import ResumeCost
from app.request_record import current_record
from app.resumption import GiveUp, History, RetryLimits, after_failure
from app.stream_metrics import StreamMetrics
from deployments.adapters import qualified
from deployments.errors import DeploymentError
from deployments.placements import PLACEMENTS, Placements
from deployments.types import Embedding, EmbedRequest, GenerateRequest, Place

logger = logging.getLogger(__name__)


@dataclass
class ModelPool:
    """What the sequences of one model have in common: where they are asked for, and what that has cost so far."""

    replicas: Any
    """A Serve handle."""
    limits: RetryLimits = field(default_factory=RetryLimits)
    placements: Placements = PLACEMENTS
    metrics: StreamMetrics | None = None
    demand: Demand | None = None
    choose: Callable[[GenerateRequest, ResumeCost], Place | None] = lambda _ask, _cost: None
    """Returns the replica for a sequence that isn't sent to a certain one; None to leave that to Serve."""
    elsewhere_s: Callable[[str, str | None], float | None] = lambda _model_id, _replica_id: None
    """Returns how soon another replica than that one would serve a model; None if nobody knows of one."""
    lose_engine: Callable[[str | None, str], None] = lambda _replica_id, _model_id: None
    """Says that the engine of a model on that replica has died."""
    line: FairQueue | None = None
    """Where tenants wait for a place; None where there are no tenants."""
    cost: ResumeCost = field(default_factory=ResumeCost)
    trial: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a sequence that may have ended an engine until its next token: one at a time, so that one which does end
    engines takes no other along that was only there."""
    resumes: int = 0
    moves: int = 0

    def count_asked(self, ask: GenerateRequest | EmbedRequest) -> None:
        """Count a sequence, or a prompt to pool, once however often it is asked for again."""
        if self.demand is not None:
            self.demand.asked(ask["model_id"], _adapter_id(ask))

    def count_delivered(self, ask: GenerateRequest, tokens: int) -> None:
        """Count what a sequence that has ended came to."""
        if self.demand is not None:
            self.demand.delivered(ask["model_id"], _adapter_id(ask), tokens)

    @asynccontextmanager
    async def place(self, model_id: str, tenant: str, weight: float) -> AsyncIterator[int | None]:
        """Hold a place for one sequence; yields its rank in the engine, None where it chooses that itself.

        Raises:
            What its client is told, as vLLM's OpenAI classes know it.
        """
        if self.line is None:
            yield None
            return
        async with AsyncExitStack() as held:
            begin_s = time.monotonic()
            try:
                rank = await held.enter_async_context(self.line.place(model_id, tenant, weight))
            except (AppError, DeploymentError) as error:
                raise as_vllm_error(error) from error
            if self.metrics is not None:
                self.metrics.queued(time.monotonic() - begin_s)
            current_record().span.lasted("queue", begin_s, time.monotonic())
            yield rank

    def count_gap(self, seconds: float) -> None:
        """Count the time between two deliveries of one sequence."""
        if self.metrics is not None:
            self.metrics.gap(seconds)

    def count_resume(self, failure: str) -> None:
        """Count an attempt that is followed by another."""
        self.resumes += 1
        if self.metrics is not None:
            self.metrics.resumed(failure)

    def count_move(self) -> None:
        """Count a hand-over."""
        self.moves += 1
        if self.metrics is not None:
            self.metrics.moved()

    def count_given_up(self, reason: str) -> None:
        """Count a request that was lost for good."""
        if self.metrics is not None:
            self.metrics.given_up(reason)


def _adapter_id(ask: GenerateRequest | EmbedRequest) -> str | None:
    adapter = ask.get("adapter")
    return qualified(adapter) if adapter is not None else None


class FailureCount:
    """What one request has been through, and so whether it is asked for again."""

    def __init__(self, model_id: str, pool: ModelPool) -> None:
        self._model_id = model_id
        self._pool = pool
        self._history = History()

    @property
    def engines_lost(self) -> int:
        """How many engines had ended under it, without a token between them, when it last failed."""
        return self._history.engines_since_token

    def wait_s(self, error: BaseException, delivered: int) -> float:
        """Return how long to wait before the next attempt; ``delivered`` counts the tokens of the failed one.

        Raises:
            What the client is told, as vLLM's OpenAI classes know it, if there is no next attempt.
        """
        failure = failure_of(error)
        self._history, decision = after_failure(
            self._history,
            failure,
            delivered=delivered,
            now_s=time.monotonic(),
            chance=random.random(),  # noqa: S311 - spreads streams, hides nothing
            limits=self._pool.limits,
        )
        if isinstance(decision, GiveUp):
            if failure != "refused" and self._history.failures > 1:
                logger.warning("a request for %s is given up (%s): %s", self._model_id, decision.reason, error)
                self._pool.count_given_up(decision.reason)
            if decision.reason == "ends engines":
                count = self._history.engines_since_token
                raise as_vllm_error(RequestEndsEnginesError(self._model_id, count)) from error
            raise translated(error, self._model_id) from error
        logger.info("%s under a request for %s; again in %.2f s", failure, self._model_id, decision.wait_s)
        self._pool.count_resume(failure)
        return decision.wait_s


async def embedded(ask: EmbedRequest, pool: ModelPool) -> Embedding:
    """Return what a replica makes of a prompt, asking again when it is lost. Raises as ``SequenceCarrier.carry``."""
    failures = FailureCount(ask["model_id"], pool)
    pool.count_asked(ask)
    attempt = 0
    while True:
        attempt += 1
        span = current_record().span.child("attempt", "client", flashserve__attempt=attempt)
        pool.placements.watch(ask["stream_id"], ask["model_id"], lambda: None)
        response = pool.replicas.embed.remote({**ask, "traceparent": span.traceparent} if span else ask)
        try:
            with span:
                return await pool.placements.answer(ask["stream_id"], response)
        except (Exception, asyncio.CancelledError) as error:
            if is_stopped(error):
                raise
            wait_s = failures.wait_s(error, delivered=0)
        finally:
            pool.placements.forget(ask["stream_id"])
            response.cancel()
        await asyncio.sleep(wait_s)


def is_stopped(error: BaseException) -> bool:
    """Tell the cancelling of this task from a replica's, which Serve passes on."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
