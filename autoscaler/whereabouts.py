"""Where the engines of each model are, over all replicas, kept so that a plan need not look at every one of them.

Covers: what a plan asks of reports, as they come in. Does not cover: deciding (``planner``). A cold engine that nobody
waits for is like every other of its model: of a thousand, a plan looks at as many as it could want.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from autoscaler.reports import COLDEST, EngineReport


@dataclass(frozen=True)
class Place:
    """One engine of a model, on a replica."""

    replica_id: str
    engine: EngineReport

    @property
    def in_use(self) -> bool:
        """Whether somebody has or waits for an answer of it."""
        return self.engine.in_hand + self.engine.waiting > 0

    def rank(self) -> tuple[object, ...]:
        """Return what a model's engines are sorted by: those in use first, then the nearest to serving."""
        return not self.in_use, self.engine.layer, self.engine.is_starting, self.replica_id


class Most:
    """The largest of many numbers that come and go."""

    def __init__(self) -> None:
        self._numbers: Counter[int] = Counter()
        self._largest = 0

    def add(self, number: int) -> None:
        """Take one in."""
        self._numbers[number] += 1
        self._largest = max(self._largest, number)

    def remove(self, number: int) -> None:
        """Take one out that is in."""
        self._numbers[number] -= 1
        if not self._numbers[number]:
            del self._numbers[number]
            if number == self._largest:
                self._largest = max(self._numbers, default=0)

    @property
    def largest(self) -> int:
        """Zero if there is none."""
        return self._largest


@dataclass
class _Engines:
    """Of one model. ``cold`` are replicas in order; ``limited`` counts those that have a budget."""

    near: dict[str, EngineReport] = field(default_factory=dict)
    cold: list[str] = field(default_factory=list)
    awake_bytes: Most = field(default_factory=Most)
    asleep_bytes: Most = field(default_factory=Most)
    limited: int = 0


@dataclass
class _Replica:
    is_limited: bool
    engines: dict[str, EngineReport] = field(default_factory=dict)
    ongoing: int = 0


class Whereabouts:
    """Of all replicas; not thread-safe."""

    def __init__(self) -> None:
        self._models: dict[str, _Engines] = {}
        self._replicas: dict[str, _Replica] = {}

    def hear(
        self, replica_id: str, engines: Mapping[str, EngineReport], gone: Iterable[str] = (), *, is_limited: bool
    ) -> None:
        """Take what has changed on a replica: engines by model, and models it has no longer."""
        known = self._replicas.get(replica_id)
        if known is None or known.is_limited != is_limited:
            before = {} if known is None else dict(known.engines)
            self.lose(replica_id)
            known = self._replicas[replica_id] = _Replica(is_limited)
            engines = {**before, **engines}
        for model_id, engine in engines.items():
            if known.engines.get(model_id) != engine:
                self._remove(replica_id, known, model_id)
                self._add(replica_id, known, model_id, engine)
        for model_id in gone:
            self._remove(replica_id, known, model_id)

    def lose(self, replica_id: str) -> None:
        """Forget a replica; harmless for one that isn't known."""
        known = self._replicas.get(replica_id)
        if known is not None:
            for model_id in list(known.engines):
                self._remove(replica_id, known, model_id)
            del self._replicas[replica_id]

    def on(self, replica_id: str) -> Mapping[str, EngineReport]:
        """Return the engines of a replica by model."""
        known = self._replicas.get(replica_id)
        return {} if known is None else known.engines

    def ongoing(self, replica_id: str) -> int:
        """Return how many sequences a replica has in hand, or keeps waiting."""
        known = self._replicas.get(replica_id)
        return 0 if known is None else known.ongoing

    def number(self, model_id: str) -> int:
        """Return how many engines of a model there are, or could be at once."""
        engines = self._models.get(model_id)
        return 0 if engines is None else len(engines.near) + len(engines.cold)

    def foremost(self, model_id: str, number: int) -> list[Place]:
        """Return a model's engines by ``rank``: all that are not plainly cold, and cold ones to make it so many."""
        engines = self._models.get(model_id)
        if engines is None:
            return []
        near = sorted((Place(*each) for each in engines.near.items()), key=Place.rank)
        cold = engines.cold[: max(0, number - len(near))]
        return near + [Place(replica_id, self._replicas[replica_id].engines[model_id]) for replica_id in cold]

    def most_bytes(self, model_id: str) -> tuple[int, int]:
        """Return the most that any engine of a model holds awake, and asleep."""
        engines = self._models.get(model_id)
        return (0, 0) if engines is None else (engines.awake_bytes.largest, engines.asleep_bytes.largest)

    def is_limited(self, model_id: str) -> bool:
        """Tell whether any engine of a model is on a replica with a budget."""
        engines = self._models.get(model_id)
        return engines is not None and engines.limited > 0

    def _add(self, replica_id: str, known: _Replica, model_id: str, engine: EngineReport) -> None:
        engines = self._models.setdefault(model_id, _Engines())
        if _is_plainly_cold(engine):
            insort(engines.cold, replica_id)
        else:
            engines.near[replica_id] = engine
        engines.awake_bytes.add(engine.awake_bytes)
        engines.asleep_bytes.add(engine.asleep_bytes)
        engines.limited += known.is_limited
        known.engines[model_id] = engine
        known.ongoing += engine.in_hand + engine.waiting

    def _remove(self, replica_id: str, known: _Replica, model_id: str) -> None:
        engine = known.engines.pop(model_id, None)
        if engine is None:
            return
        engines = self._models[model_id]
        if engines.near.pop(replica_id, None) is None:
            del engines.cold[bisect_left(engines.cold, replica_id)]
        engines.awake_bytes.remove(engine.awake_bytes)
        engines.asleep_bytes.remove(engine.asleep_bytes)
        engines.limited -= known.is_limited
        known.ongoing -= engine.in_hand + engine.waiting
        if not engines.near and not engines.cold:
            del self._models[model_id]

    def __repr__(self) -> str:
        return f"<Whereabouts of {len(self._models)} models on {len(self._replicas)} replicas>"


def _is_plainly_cold(engine: EngineReport) -> bool:
    return engine.layer == COLDEST and engine.in_hand + engine.waiting == 0
