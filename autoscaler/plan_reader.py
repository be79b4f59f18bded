"""Reads what the forecaster says without ever waiting for it: whoever asks gets the last answer, and its age.

Covers: one question at a time, in a thread that nobody joins. Does not cover: whether the answer can be believed.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
ANSWER_S = 5.0


class PlanReader:
    """``ask`` may take its time or fail: then there is no new answer."""

    def __init__(self, ask: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        # Written by the asking thread, in one assignment.
        self._answer: tuple[Any, float] | None = None
        self._asking: threading.Thread | None = None
        self._asked_s = -PERIOD_S

    def latest(self) -> tuple[Any, float] | None:
        """Return the last answer with its age in seconds, and ask for the next one if it is time."""
        now_s = self._clock()
        answer = self._answer
        if now_s - self._asked_s >= PERIOD_S and (self._asking is None or not self._asking.is_alive()):
            self._asked_s = now_s
            self._asking = threading.Thread(target=self._fetch, args=(now_s,), name="plan", daemon=True)
            self._asking.start()
        return None if answer is None else (answer[0], now_s - answer[1])

    def _fetch(self, asked_s: float) -> None:
        try:
            answer = self._ask()
        except Exception as error:  # noqa: BLE001 - of whatever kind, it means that there is no plan
            logger.debug("there is no plan: %s", error)
        else:
            self._answer = (answer, asked_s)

    def __repr__(self) -> str:
        return f"<PlanReader, last answer {self._answer!r}>"


class PoolQuestion:
    """Asks a named actor for a pool's plan; called in threads."""

    def __init__(self, actor: str, namespace: str, pool: str) -> None:
        self._actor = actor
        self._namespace = namespace
        self._pool = pool
        self._handle: Any = None

    def __call__(self) -> Any:
        """Return the plan. Raises whatever Ray does, and ValueError if there is no such actor."""
        import ray  # noqa: PLC0415 - tests ask others

        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._actor, self._namespace)
            return ray.get(self._handle.pool_plan.remote(self._pool), timeout=ANSWER_S)
        except Exception:
            # One that was created anew has another handle.
            self._handle = None
            raise
