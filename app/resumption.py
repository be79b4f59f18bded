"""What becomes of a sequence whose attempt has failed: it is asked for again, or given up. Pure; time is an argument.

Covers: telling a request that ends engines from one that was there when they ended, how long to wait, when to stop.
Does not cover: asking (``engine_client``), what Serve's and replicas' errors mean (``attempts``).
"""

from dataclasses import dataclass, replace
from typing import Literal

Failure = Literal[
    "engine died",  # the engine ended while it worked on the sequence
    "engine lost",  # it ended with the sequence still waiting, or had before
    "replica died",  # its replica did, or the way to it broke
    "leaving",  # the replica is being shut down, in order
    "unavailable",  # nobody can serve the model now
    "refused",  # nobody will ever serve this
]
GiveUpReason = Literal["ends engines", "too many failures", "out of patience", "refused"]


@dataclass(frozen=True)
class RetryLimits:
    """How far a sequence is followed."""

    max_engines: int = 2
    """Engines that may end under a sequence without a token between them."""
    max_replicas: int = 4
    """Replicas that may end so, and engines that had not begun the sequence; more, because it seldom ends those."""
    max_failures: int = 32
    """Attempts that may fail however much they delivered."""
    patience_s: float = 120.0
    """How long a sequence is asked for again without a token coming."""
    first_wait_s: float = 0.05
    longest_wait_s: float = 5.0


@dataclass(frozen=True)
class History:
    """What a sequence has been through."""

    failures: int = 0
    engines_since_token: int = 0
    replicas_since_token: int = 0
    waits_since_token: int = 0
    failing_since_s: float | None = None


@dataclass(frozen=True)
class Retry:
    """Ask again after so long."""

    wait_s: float


@dataclass(frozen=True)
class GiveUp:
    """End the stream with an error."""

    reason: GiveUpReason


def after_failure(  # noqa: PLR0913 - everything the decision depends on
    history: History, failure: Failure, *, delivered: int, now_s: float, chance: float, limits: RetryLimits
) -> tuple[History, Retry | GiveUp]:
    """Return the history with this failure, and what to do.

    Args:
        history: what was before.
        failure: how the attempt ended.
        delivered: tokens that this attempt delivered; 0 for embeddings.
        now_s: any clock that goes on.
        chance: a random number in [0, 1), so that streams which failed together don't come back together.
        limits: how far to go.
    """
    is_fresh = history.failures == 0 and delivered == 0
    history = _with(history, failure, delivered, now_s)
    if failure == "refused" or (failure == "unavailable" and is_fresh):
        # Who hasn't been served yet is told at once, as any request for a model that can't serve.
        return history, GiveUp("refused")
    if history.engines_since_token >= limits.max_engines:
        return history, GiveUp("ends engines")
    if history.replicas_since_token >= limits.max_replicas or history.failures >= limits.max_failures:
        return history, GiveUp("too many failures")
    wait_s = min(limits.longest_wait_s, limits.first_wait_s * 2.0 ** (history.waits_since_token - 1))
    wait_s *= 0.5 + chance
    if now_s + wait_s - (history.failing_since_s or now_s) > limits.patience_s:
        return history, GiveUp("out of patience")
    return history, Retry(wait_s)


def _with(history: History, failure: Failure, delivered: int, now_s: float) -> History:
    """Begin anew after a token: the sequence is not what ended the engine before it, and somebody serves it again."""
    if delivered:
        history = History(failures=history.failures)
    return replace(
        history,
        failures=history.failures + 1,
        engines_since_token=history.engines_since_token + (failure == "engine died"),
        replicas_since_token=history.replicas_since_token + (failure in {"replica died", "engine lost"}),
        waits_since_token=history.waits_since_token + 1,
        failing_since_s=now_s if history.failing_since_s is None else history.failing_since_s,
    )
