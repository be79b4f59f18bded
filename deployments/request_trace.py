"""What a request did at a replica, as spans: waited for its engine, for its turn in it, was read, was answered.

Covers: the spans and what is in them. Does not cover: how spans get anywhere (``tracing``).
"""

import time
from collections.abc import Sequence

from deployments.tracing import Span
from deployments.types import EngineState, StartEvent
from deployments.wire import TokenDelta

# What takes less is no waiting.
_NOTHING_S = 0.001


def trace_hold(span: Span, state: EngineState, began_s: float, ended_s: float, events: Sequence[StartEvent]) -> None:
    """Add how a request was held, in which state its engine was then, and the starts and wakes that it waited for.

    Times are of the monotonic clock; ``events`` are the engine's latest, of which only those of that time count.
    """
    if not span or (state == "awake" and ended_s - began_s < _NOTHING_S):
        return
    hold = span.child("hold", began_s=began_s, flashserve__engine_state=state)
    to_wall_s = span.to_wall_ns / 1e9
    for event in events:
        over_s = event["at_s"] - to_wall_s
        if began_s <= over_s <= ended_s + _NOTHING_S:
            _trace_event(hold, event, over_s)
    hold.end(ended_s=ended_s)


def _trace_event(hold: Span, event: StartEvent, over_s: float) -> None:
    began_s = over_s - event["took_s"]
    made_ready = hold.child(event["kind"], began_s=began_s, flashserve__tier=event["tier"])
    for stage, takes_s in event["stages_s"].items():
        stage_began_s = began_s + event["begins_s"].get(stage, 0.0)
        made_ready.lasted(stage, stage_began_s, stage_began_s + takes_s)
    made_ready.end(ended_s=over_s)


class TracedDeltas:
    """Notes when a sequence's tokens came from its engine; ``end`` makes spans of it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._began_s = time.monotonic()
        self._queued_s: float | None = None
        self._first_s: float | None = None
        self._tokens = 0

    def take(self, delta: TokenDelta) -> None:
        """Note a delta."""
        if self._first_s is None:
            self._first_s = time.monotonic()
            self._queued_s = delta.queued_s
        self._tokens += len(delta.token_ids)

    def end(self) -> None:
        """Add the spans, as far as it has come."""
        if not self._span:
            return
        now_s, read_from_s = time.monotonic(), self._began_s
        if self._queued_s is not None:
            read_from_s += self._queued_s
            self._span.lasted("queue", self._began_s, read_from_s)
        first_s = self._first_s or now_s
        self._span.lasted("prefill", min(read_from_s, first_s), first_s)
        if self._first_s is not None:
            self._span.lasted("decode", first_s, now_s, flashserve__tokens=self._tokens)
