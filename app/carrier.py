"""Carries a sequence to its end over as many attempts as it takes: each asks for what is left, from where it is.

Covers: the attempts, which tokens belong to the one that counts, moving from one replica to another. Does not cover:
whether there is another attempt (``resumption``), how many rounds a move takes (``migration``), text
(``engine_client``), how an engine goes on (``deployments``).
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

from app.attempts import failure_of
from app.migration import another_round, is_quicker_elsewhere
from app.model_pool import FailureCount, ModelPool, is_stopped
from app.request_record import RequestRecord
from deployments.errors import FeedError
from deployments.tracing import Span
from deployments.types import GenerateRequest, Place
from deployments.wire import MAKE_ROOM, MOVE, TokenDelta

# How long a stream waits for its last tokens after the replica said that it has sent them all.
FEED_GRACE_S = 5.0
# A move that failed is tried again after this long, while the source goes on.
MOVE_AGAIN_S = 1.0

logger = logging.getLogger(__name__)


class Desk(Protocol):
    """Hands deltas to the carriers that wait for them."""

    def expect(self, attempt_id: str, carrier: "SequenceCarrier") -> None:
        """Hand the attempt's deltas to ``carrier`` from now on."""
        ...

    def forget(self, attempt_id: str) -> None:
        """Drop whatever still comes for the attempt."""
        ...


class SequenceCarrier:
    """One sequence; one event loop. ``carry`` runs in a task whose cancelling stops the generation."""

    def __init__(
        self,
        ask: GenerateRequest,
        pool: ModelPool,
        desk: Desk,
        spend: Callable[[int], None] = lambda _: None,
        record: RequestRecord | None = None,
    ) -> None:
        """``ask`` is the sequence from its beginning.

        ``spend`` is told how many tokens are delivered, as they are; ``record`` takes the notes of the request.
        """
        self.stream_id = ask["stream_id"]
        # Where its tokens come from now.
        self.attempt_id = ""
        # Every token that the client has got, or is about to: an attempt that ends takes none of them back.
        self.delivered: list[int] = []
        self._ask = ask
        self._pool = pool
        self._desk = desk
        self._spend = spend
        self._record = record or RequestRecord()
        self._latest_s: float | None = None
        self._failures = FailureCount(ask["model_id"], pool)
        self._asked = 0
        self._ended = asyncio.Event()
        self._current: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        # Where the next attempt goes, when it is no failure that ends this one.
        self._target: Place | None = None
        self._resumed_at: tuple[float, int] | None = None
        # When this attempt's first tokens came, and how many there were then.
        self._pace_since: tuple[float, int] | None = None
        self._delivered_at_failure = 0
        self._is_on_trial = False

    def take(self, delta: TokenDelta) -> None:
        """Count a delta of the attempt that is under way."""
        if self._resumed_at is not None and delta.token_ids:
            asked_s, tokens = self._resumed_at
            self._resumed_at = None
            self._pool.cost = self._pool.cost.measured(tokens, time.monotonic() - asked_s)
        if delta.token_ids:
            self._acquit()
        self.delivered += delta.token_ids
        self._spend(len(delta.token_ids))
        self._note(len(delta.token_ids))
        if self._pace_since is None:
            self._pace_since = (time.monotonic(), len(self.delivered))
        if delta.finish_reason is not None:
            self._ended.set()
        elif delta.is_request():
            self._asked_to(delta.stop_reason)

    def _note(self, tokens: int) -> None:
        if not tokens:
            return
        now_s = time.monotonic()
        self._record.tokens_came(tokens, now_s)
        if self._latest_s is not None:
            self._pool.count_gap(now_s - self._latest_s)
        self._latest_s = now_s

    def _asked_to(self, what: int | str | None) -> None:
        if what == MOVE:
            self.move()
        elif what == MAKE_ROOM:
            source_id = self._pool.placements.replica_of(self.attempt_id)
            elsewhere_s = self._pool.elsewhere_s(self._ask["model_id"], source_id)
            tokens = len(self._ask["prompt_token_ids"]) + len(self.delivered)
            if is_quicker_elsewhere(tokens, self._left_s(), elsewhere_s, self._pool.cost):
                self.move()

    def _left_s(self) -> float:
        """Return how long it would take here until its last token, if it is as long as it may be."""
        if self._pace_since is None:
            return math.inf
        since_s, tokens = self._pace_since
        made = len(self.delivered) - tokens
        left = self._ask["sampling"].get("max_tokens", math.inf) - len(self.delivered)
        return left * (time.monotonic() - since_s) / made if made > 0 else math.inf

    def move(self) -> None:
        """Go on at another replica as soon as there is one and it has computed what exists; harmless if it moves."""
        if not self._ended.is_set() and (self._moving is None or self._moving.done()):
            self._moving = asyncio.get_running_loop().create_task(self._move())

    async def carry(self) -> None:
        """Return when the sequence has ended.

        Raises:
            What its client is told, as vLLM's OpenAI classes know it.
        """
        self._pool.count_asked(self._ask)
        try:
            while not self._ended.is_set():
                await self._carry_on()
        finally:
            self._pool.count_delivered(self._ask, len(self.delivered))
            if self._moving is not None:
                self._moving.cancel()

    async def _carry_on(self) -> None:
        before = len(self.delivered)
        # Of its own, so that what an earlier attempt left in the sockets is nobody's.
        self.attempt_id = self._new_id()
        self._current = asyncio.get_running_loop().create_task(self._attempt(self.attempt_id))
        try:
            await self._current
        except (Exception, asyncio.CancelledError) as error:
            if is_stopped(error):
                raise
            if self._ended.is_set() or (self._target is not None and isinstance(error, asyncio.CancelledError)):
                return
            wait_s = self._failures.wait_s(error, len(self.delivered) - before)
            self._delivered_at_failure = len(self.delivered)
            await asyncio.sleep(wait_s)

    async def _attempt(self, attempt_id: str) -> None:
        with self._span("attempt") as span:
            try:
                if self._failures.engines_lost and len(self.delivered) == self._delivered_at_failure:
                    await self._pool.trial.acquire()
                    self._is_on_trial = True
                await self._ask_once(attempt_id, span)
            except BaseException as error:
                # Cancelled too: a span that nobody ends is never sent.
                self._trace_end(span, error)
                raise
            finally:
                self._acquit()

    def _span(self, name: str) -> Span:
        sequence, delivered = self.stream_id, len(self.delivered)
        return self._record.span.child(
            name, "client", flashserve__sequence=sequence, flashserve__attempt=self._asked,
            flashserve__delivered_tokens=delivered,
        )  # fmt: skip

    def _trace_end(self, span: Span, error: BaseException) -> None:
        """End an attempt's span as that of one that failed, unless it was meant to end."""
        if not isinstance(error, asyncio.CancelledError):
            span.end(failure_of(error))
        elif self._target is not None:
            span.note(flashserve__moved=True)

    def _acquit(self) -> None:
        if self._is_on_trial:
            self._is_on_trial = False
            self._pool.trial.release()

    async def _ask_once(self, attempt_id: str, span: Span) -> None:
        place, self._target = self._target, None
        ask = self._next_ask(attempt_id, place or self._pool.choose(self._ask, self._pool.cost), span)
        self._pace_since = None
        if self.delivered and place is None:
            self._resumed_at = (time.monotonic(), len(ask["prompt_token_ids"]) + len(self.delivered))
        self._desk.expect(attempt_id, self)
        self._pool.placements.watch(attempt_id, ask["model_id"], self.move)
        response = None
        try:
            response = self._pool.replicas.generate.remote(ask)
            await self._pool.placements.answer(attempt_id, response)
            await self._last_tokens()
        except BaseException as error:
            # Also when its client has gone: the replica must not go on for nobody.
            if response is not None:
                response.cancel()
            if failure_of(error) in {"engine died", "engine lost"}:
                self._pool.lose_engine(self._pool.placements.replica_of(attempt_id), ask["model_id"])
            raise
        finally:
            self._pool.placements.forget(attempt_id)
            self._desk.forget(attempt_id)

    async def _move(self) -> None:
        """Prepare another replica, round by round, and hand over to it."""
        source_id, placements = self.attempt_id, self._pool.placements
        rests = [len(self._ask["prompt_token_ids"]) + len(self.delivered)]
        place: Place = {"avoid_id": placements.replica_of(source_id)}
        engines_lost = 0
        await placements.another_than(source_id)
        while another_round(rests, self._pool.cost):
            known, begin_s = len(self.delivered), time.monotonic()
            try:
                place = await self._prepare(place)
            except Exception as error:  # noqa: BLE001 - whatever it is, the source goes on
                logger.warning("a stream of %s is to move and has not: %s", self._ask["model_id"], error)
                failure = failure_of(error)
                engines_lost += failure == "engine died"
                # It may be the stream that ends engines; where it is, it goes on.
                if failure == "refused" or engines_lost >= self._pool.limits.max_engines:
                    return
                await asyncio.sleep(MOVE_AGAIN_S)
                await placements.another_than(source_id)
                continue
            self._pool.cost = self._pool.cost.measured(rests[-1], time.monotonic() - begin_s)
            rests.append(len(self.delivered) - known)
        if self.attempt_id == source_id and self._current is not None and not self._ended.is_set():
            self._target = place
            # Otherwise the source has been lost meanwhile, and this is where to go on.
            if not self._current.done():
                self._pool.count_move()
                self._current.cancel()

    async def _prepare(self, place: Place) -> Place:
        """Have a replica compute what exists, into its prefix cache; return which one it was."""
        with self._span("move") as span:
            return await self._prepare_round(place, span)

    async def _prepare_round(self, place: Place, span: Span) -> Place:
        round_id = self._new_id()
        ask = self._next_ask(round_id, place, span)
        # A token has to be made, for the sake of the rest; nobody expects it.
        only_one = {"max_tokens": len(self.delivered) + 1, "min_tokens": 0, "seed": None}
        ask["sampling"] = ask["sampling"] | only_one | {"logprobs": None, "prompt_logprobs": None}
        ask["prepares"] = True
        self._pool.placements.watch(round_id, ask["model_id"], lambda: None)
        response = self._pool.replicas.generate.remote(ask)
        try:
            await self._pool.placements.answer(round_id, response)
            return {"replica_id": self._pool.placements.replica_of(round_id), "avoid_id": place.get("avoid_id")}
        except BaseException:
            # Cancelled too: nobody would come for what the target computes.
            response.cancel()
            raise
        finally:
            self._pool.placements.forget(round_id)

    def _new_id(self) -> str:
        self._asked += 1
        return self.stream_id if self._asked == 1 else f"{self.stream_id}~{self._asked}"

    def _next_ask(self, attempt_id: str, place: Place | None, span: Span) -> GenerateRequest:
        ask: GenerateRequest = {**self._ask, "stream_id": attempt_id}
        if self.delivered:
            ask["delivered_token_ids"] = list(self.delivered)
        if place is not None:
            ask["place"] = place
        if span:
            ask["traceparent"] = span.traceparent
        return ask

    async def _last_tokens(self) -> None:
        try:
            async with asyncio.timeout(FEED_GRACE_S):
                await self._ended.wait()
        except TimeoutError:
            raise FeedError(str(self._ask["reply_to"]["port"]), "its last tokens are missing") from None

    def __repr__(self) -> str:
        return f"<SequenceCarrier {self.stream_id}, asked {self._asked} times, {len(self.delivered)} tokens>"
