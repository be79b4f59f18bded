"""How soon a replica would give a model's first token. Pure: what replicas say of themselves, and the time.

What is known is kept in columns, a row a replica, so that an estimate for a thousand replicas takes little longer than
for one. An estimate that is wrong costs time and nothing else: every replica can serve every model of its pool.
"""

import random
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from deployments.adapter_rows import DRAM, ELSEWHERE, HOST, AdapterRows
from deployments.wire import EngineNews, ReplicaNews

# Before anything was measured.
FIRST_TOKEN_S = 0.1
# What waits for room waits for others' turns to end.
NO_ROOM_S = 5.0
# News are sent at least every second; after this long without, a replica is not believed.
STALE_S = 5.0
# Estimates this close are equal: among equals chance decides, so that gateways don't all go to one.
EQUAL = 1.1

_NEVER_S = -1e18
_FEWEST_ROWS = 8
# The rows of a model's columns. TAKES_S is until the engine is awake, from AGE_S before the news where it PASSES.
_KNOWN, _TAKES_S, _PASSES, _AGE_S, _FIRST_S, _LOAD, _IN_HAND, _SENT, _ASKS_ROOM, _NEEDS_BYTES, _START_S = range(11)
# What it takes to have an adapter that is in a tier, by ``_ADAPTER_S + tier``; nothing for one that is in a slot.
_ADAPTER_S = 11
_FIELDS = 15

_Floats = NDArray[np.float64]


class PoolView:
    """What a gateway knows of the replicas of a pool; times are on the caller's clock."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._ids: list[str] = []
        self._free: list[int] = []
        self._heard_s = np.full(0, _NEVER_S)
        self._room_bytes = np.zeros(0)
        # By model: [fields, rows].
        self._models: dict[str, _Floats] = {}
        self._adapters: dict[str, AdapterRows] = {}
        # By row, models of which this gateway has sent sequences since it last heard of it.
        self._sent: list[set[str]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[str]:
        """Return the replicas that have been heard of."""
        return list(self._rows)

    def is_silent(self, replica_id: str, now_s: float) -> bool:
        """Tell whether nothing has been heard of a replica for too long to believe it."""
        row = self._rows.get(replica_id)
        return row is None or now_s - float(self._heard_s[row]) > STALE_S

    def hear(self, news: ReplicaNews, now_s: float) -> None:
        """Take news into account."""
        row = self._row(news.replica_id)
        for model_id, engine in news.engines.items():
            columns = self._models.get(model_id)
            if columns is None:
                columns = self._models[model_id] = np.zeros((_FIELDS, len(self._heard_s)))
            columns[:, row] = _column(engine)
            self._hear_adapters(model_id, row, engine)
        for model_id in news.gone:
            self._forget(model_id, row)
        self._heard_s[row], self._room_bytes[row] = now_s, news.room_bytes
        for model_id in self._sent[row]:
            if model_id in self._models:
                self._models[model_id][_SENT, row] = 0.0
        self._sent[row].clear()

    def lose(self, replica_id: str) -> None:
        """Forget a replica; harmless for one that isn't known."""
        row = self._rows.pop(replica_id, None)
        if row is None:
            return
        for model_id in list(self._models):
            self._forget(model_id, row)
        self._heard_s[row] = _NEVER_S
        self._sent[row].clear()
        self._free.append(row)

    def lose_engine(self, replica_id: str, model_id: str) -> None:
        """Take an engine for cold until the replica says more."""
        row, columns = self._rows.get(replica_id), self._models.get(model_id)
        if row is not None and columns is not None:
            columns[_TAKES_S, row] = columns[_START_S, row]
            columns[_PASSES, row], columns[_AGE_S, row], columns[_ASKS_ROOM, row] = 0.0, 0.0, 1.0
            if model_id in self._adapters:
                self._adapters[model_id].forget(row)

    def send(self, replica_id: str, model_id: str, adapter: int | None = None) -> None:
        """Count a sequence that the replica hasn't told of yet; ``adapter`` is its ``adapter_key``."""
        row, columns = self._rows[replica_id], self._models.get(model_id)
        if columns is not None:
            columns[_SENT, row] += 1.0
            self._sent[row].add(model_id)
            if adapter is not None and model_id in self._adapters:
                self._adapters[model_id].expect(row, adapter)

    def first_tokens_s(self, model_id: str, now_s: float) -> dict[str, float]:
        """Estimate the time to a first token in seconds, by replica; those of which nothing can be said are left out.

        That is queue + time to be awake + prefill: what the engine took for its last first tokens, grown as its load
        has.
        """
        rows, estimates_s = self._estimates_s(model_id, now_s)
        return {self._ids[row]: each_s for row, each_s in zip(rows.tolist(), estimates_s.tolist(), strict=True)}

    def least_s(self, model_id: str, now_s: float, but: str | None = None) -> float | None:
        """Return the least estimate of all replicas ``but`` one; None if nothing can be said of them."""
        rows, estimates_s = self._estimates_s(model_id, now_s)
        left_s = estimates_s[rows != self._rows.get(but or "", -1)]
        return float(left_s.min()) if len(left_s) else None

    def best(self, model_id: str, now_s: float, saved_s: Mapping[str, float], adapter: int | None = None) -> list[str]:
        """Return the replicas with the least estimates, which are as good as equal; none if nothing can be said.

        ``saved_s`` is by replica what it need not compute because it has it: a prefix of the prompt. With ``adapter``,
        an ``adapter_key``, the time that replicas take to have it counts, and among equals those that have it nearest
        are the best: to load it elsewhere would push another out for nothing.
        """
        rows, estimates_s = self._estimates_s(model_id, now_s)
        if not len(rows):
            return []
        adapter_s = self._adapter_s(model_id, adapter, rows)
        estimates_s = estimates_s + adapter_s
        for replica_id, each_s in saved_s.items():
            # Rows are in order.
            row = self._rows.get(replica_id, -1)
            place = int(np.searchsorted(rows, row))
            if place < len(rows) and rows[place] == row:
                estimates_s[place] = max(0.0, estimates_s[place] - each_s)
        equal = estimates_s <= estimates_s.min() * EQUAL
        return [self._ids[row] for row in rows[equal & (adapter_s <= adapter_s[equal].min())].tolist()]

    def soonest(
        self, model_id: str, now_s: float, saved_s: Mapping[str, float], adapter: int | None = None
    ) -> str | None:
        """Return one of the ``best``; None if Serve's own choice is as good as any."""
        best = self.best(model_id, now_s, saved_s, adapter)
        return random.choice(best) if best else None  # noqa: S311 - spreads requests, hides nothing

    def _estimates_s(self, model_id: str, now_s: float) -> tuple[NDArray[np.intp], _Floats]:
        """Return the rows of which something can be said, in order, and their estimates."""
        columns = self._models.get(model_id)
        if columns is None:
            return np.zeros(0, np.intp), np.zeros(0)
        rows = np.flatnonzero((columns[_KNOWN] > 0) & (now_s - self._heard_s <= STALE_S))
        known = columns[:, rows]
        passed_s = known[_AGE_S] + now_s - self._heard_s[rows]
        until_awake_s = np.where(known[_PASSES] > 0, np.maximum(0.0, known[_TAKES_S] - passed_s), known[_TAKES_S])
        prefill_s = known[_FIRST_S] * (1 + (known[_IN_HAND] + known[_SENT])) / (1 + known[_LOAD])
        no_room = (known[_ASKS_ROOM] > 0) & (known[_NEEDS_BYTES] > self._room_bytes[rows])
        return rows, until_awake_s + prefill_s + np.where(no_room, NO_ROOM_S, 0.0)

    def _adapter_s(self, model_id: str, adapter: int | None, rows: NDArray[np.intp]) -> _Floats:
        known = self._adapters.get(model_id)
        if adapter is None or known is None:
            return np.zeros(len(rows))
        return self._models[model_id][_ADAPTER_S + known.tiers(adapter, rows), rows]

    def _hear_adapters(self, model_id: str, row: int, engine: EngineNews) -> None:
        if engine.adapters is not None:
            self._adapters.setdefault(model_id, AdapterRows()).hear(row, engine.adapters)
        elif model_id in self._adapters:
            self._adapters[model_id].forget(row)

    def _row(self, replica_id: str) -> int:
        row = self._rows.get(replica_id)
        if row is None:
            if not self._free:
                self._grow()
            row = self._rows[replica_id] = self._free.pop()
            self._ids[row] = replica_id
        return row

    def _grow(self) -> None:
        before = len(self._heard_s)
        more = max(_FEWEST_ROWS, before)
        self._heard_s = np.concatenate([self._heard_s, np.full(more, _NEVER_S)])
        self._room_bytes = np.concatenate([self._room_bytes, np.zeros(more)])
        for model_id, columns in self._models.items():
            self._models[model_id] = np.concatenate([columns, np.zeros((_FIELDS, more))], axis=1)
        self._ids += [""] * more
        self._sent += [set() for _ in range(more)]
        self._free += range(before + more - 1, before - 1, -1)

    def _forget(self, model_id: str, row: int) -> None:
        columns = self._models.get(model_id)
        if columns is None:
            return
        was_known, columns[:, row] = columns[_KNOWN, row], 0.0
        if model_id in self._adapters:
            self._adapters[model_id].forget(row)
        if was_known and not columns[_KNOWN].any():
            del self._models[model_id]
            self._adapters.pop(model_id, None)

    def __repr__(self) -> str:
        return f"<PoolView of {len(self._rows)} replicas, {len(self._models)} models>"


def _column(engine: EngineNews) -> tuple[float, ...]:
    takes_s = {
        "awake": 0.0,
        "waking": engine.wake_s,
        "starting": engine.start_s,
        "asleep": engine.wake_s,
        "sleeping": engine.wake_s,
        "cold": engine.start_s,
        "stopping": engine.start_s,
    }.get(engine.state, float("inf"))
    passes = engine.state in {"waking", "starting"}
    asks_room = engine.state in {"asleep", "sleeping", "cold", "stopping"}
    first_s = engine.first_token_s or FIRST_TOKEN_S
    return (
        *(1.0, takes_s, float(passes), engine.age_s, first_s, engine.load, engine.in_hand, 0.0),
        *(float(asks_room), engine.needs_bytes, engine.start_s),
        *_adapter_column(engine),
    )


def _adapter_column(engine: EngineNews) -> tuple[float, ...]:
    by_tier = [0.0] * (ELSEWHERE + 1)
    if engine.adapters is not None:
        told = engine.adapters
        by_tier[HOST], by_tier[DRAM], by_tier[ELSEWHERE] = told.host_s, told.dram_s, told.elsewhere_s
    return tuple(by_tier)
