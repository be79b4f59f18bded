"""Where counts come in: each push once, to whoever learns from it at once, and to the history as soon as that can be.

Covers: pushes that come twice, a history that is locked, full or broken for a while, opening it again. Does not cover:
who pushes, the file itself (``history``). Blocking: whoever calls ``write`` gives it a thread.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaler.errors import HistoryError
from autoscaler.history import History
from autoscaler.types import Count, Past

logger = logging.getLogger(__name__)

MAX_BACKLOG = 20_000
MAX_SOURCES = 1_000
PRUNE_EVERY_S = 3600.0


@dataclass(frozen=True)
class Push:
    """Counts of one source; ``number`` grows with each push of it. It has counted since ``since_s``."""

    source: str
    number: int
    counts: tuple[Count, ...]
    now_s: float
    since_s: float


class Intake:
    """``take`` and ``write`` may run in different threads, each in one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        """Why the history can't be used now, if so."""
        self.dropped = 0
        """Pushes that were never written, because too many waited."""
        self._history: History | None = None
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._backlog: deque[Push] = deque()
        self._pruned_s: float | None = None

    def take(self, push: Push) -> bool:
        """Queue a push for the history; false for one that was here before."""
        if push.number <= self._numbers.get(push.source, -1):
            return False
        self._numbers[push.source] = push.number
        self._numbers.move_to_end(push.source)
        if len(self._numbers) > MAX_SOURCES:
            self._numbers.popitem(last=False)
        if len(self._backlog) >= MAX_BACKLOG:
            self._backlog.popleft()
            self.dropped += 1
        self._backlog.append(push)
        return True

    def write(self, now_s: float) -> None:
        """Write what waits; what can't be written goes on waiting, and ``problem`` says why."""
        try:
            history = self._opened()
            while self._backlog:
                push = self._backlog[0]
                history.push(push.counts, push.now_s, source=push.source, number=push.number, since_s=push.since_s)
                self._backlog.popleft()
            if self._pruned_s is None or abs(now_s - self._pruned_s) > PRUNE_EVERY_S:
                history.prune(now_s)
                self._pruned_s = now_s
        except HistoryError as error:
            if self.problem is None:
                logger.warning("%s; %d pushes wait", error, len(self._backlog))
            self.problem = str(error)
            # Opening it again moves a broken file aside.
            self.close()
        else:
            self.problem = None

    def read(self, series: Sequence[str], bucket_s: int, begin_s: float, end_s: float) -> Past:
        """See ``History.read``."""
        return self._opened().read(series, bucket_s, begin_s, end_s)

    def adapters_of(self, models: Iterable[str]) -> list[str]:
        """Return the series of the models' adapters. Raises HistoryError."""
        wanted = set(models)
        return [name for name in self._opened().series() if ":" in name and name.partition(":")[0] in wanted]

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        history, self._history = self._history, None
        if history is not None:
            history.close()

    def _opened(self) -> History:
        if self._history is None:
            self._history = History(self.path)
            if self._history.set_aside is not None:
                logger.warning("the arrival history was corrupt: it is now %s", self._history.set_aside)
        return self._history

    def __repr__(self) -> str:
        return f"<Intake {self.path}, {len(self._backlog)} pushes wait>"
