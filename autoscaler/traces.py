"""Recorded traces as arrivals: request logs, and counts a window, in CSV.

Covers: reading, checking, and what a request takes where the trace only gives tokens or nothing. Does not cover:
histories (``log_import``). Arrivals inside a window of counts are drawn with a fixed seed: their timing is synthetic.
"""

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from autoscaler.errors import TraceError
from autoscaler.types import Floats

SERIES_COLUMNS = ("model_id", "model", "series", "client")
COUNT_COLUMNS = ("requests", "count")
MINUTE_S = 60.0
TOKENS_COLUMN, TOKENS_A_REQUEST = "total_tokens", 700.0
"""A table of tokens alone is read as requests of so many tokens, about what BurstGPT's requests have on the mean."""


@dataclass(frozen=True)
class Service:
    """What a request takes where the trace doesn't say: a fixed time, or by tokens."""

    fixed_s: float = 3.0
    prefill_tokens_per_s: float = 8000.0
    seconds_per_token: float = 0.02


@dataclass(frozen=True)
class Arrivals:
    """Requests of one series, in order: [requests] seconds at which they came, and seconds each is being served."""

    at_s: Floats
    service_s: Floats

    def until(self, end_s: float) -> "Arrivals":
        """Return those before ``end_s``."""
        number = int(np.searchsorted(self.at_s, end_s))
        return Arrivals(self.at_s[:number], self.service_s[:number])


Trace = Mapping[str, Arrivals]


def read_trace(path: Path, service: Service | None = None, *, thin: int = 1, limit: int | None = None) -> Trace:
    """Return the arrivals of each series.

    ``thin`` keeps each n-th series, whole, so that burstiness stays; series with more than ``limit`` requests are left
    out. Raises TraceError.
    """
    service = service or Service()
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or ())
            found = _counted(reader, columns, service, thin, limit) if "window_start_s" in columns else None
            rows = _rows(reader, columns, service) if found is None else found
            gathered: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for series, at_s, service_s in rows:
                gathered[series].append((at_s, service_s))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(str(path), str(error) or repr(error)) from error
    # Of windows, series were chosen before their requests were drawn.
    names = sorted(gathered) if found is not None else sorted(gathered)[::thin]
    trace = {name: _arrivals(gathered[name]) for name in names if limit is None or len(gathered[name]) <= limit}
    if not trace:
        raise TraceError(str(path), "it has no requests")
    return trace


def _arrivals(rows: list[tuple[float, float]]) -> Arrivals:
    values = np.array(sorted(rows), float)
    if not np.isfinite(values).all() or (values < 0).any():
        raise TraceError("rows", "times must be finite and not negative")
    return Arrivals(values[:, 0].copy(), values[:, 1].copy())


def _rows(reader: "csv.DictReader[str]", columns: list[str], service: Service) -> Iterator[tuple[str, float, float]]:
    if "timestamp_s" in columns:
        return _requests(reader, columns, service)
    if "minute" in columns:
        return _minutes(reader, columns, service)
    raise ValueError("there is none of the columns timestamp_s, window_start_s, minute")


def _requests(
    reader: "csv.DictReader[str]", columns: list[str], service: Service
) -> Iterator[tuple[str, float, float]]:
    names = [column for column in SERIES_COLUMNS if column in columns]
    for row in reader:
        if row.get("exec_time_s"):
            taken_s = float(row["exec_time_s"])
        elif "generated_tokens" in columns:
            taken_s = float(row["context_tokens"]) / service.prefill_tokens_per_s
            taken_s += float(row["generated_tokens"]) * service.seconds_per_token
        else:
            taken_s = service.fixed_s
        yield "/".join(row[name] for name in names) or "all", float(row["timestamp_s"]), max(taken_s, 0.01)


def _counted(
    reader: "csv.DictReader[str]", columns: list[str], service: Service, thin: int, limit: int | None
) -> Iterator[tuple[str, float, float]]:
    windows, width_s = _windows(reader, columns)
    totals = {series: sum(number for _, number, _ in each) for series, each in windows.items()}
    for series in sorted(windows)[::thin]:
        if limit is not None and totals[series] > limit:
            continue
        for begin_s, number, burstiness in windows[series]:
            for at_s in _drawn(series, begin_s, width_s, number, burstiness):
                yield series, at_s, service.fixed_s


def read_counts(path: Path) -> tuple[Mapping[str, dict[float, int]], float]:
    """Return of a trace of windows how many requests each series had by the second its windows began, and their length.

    Raises TraceError.
    """
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as lines:
            reader = csv.DictReader(lines)
            windows, width_s = _windows(reader, list(reader.fieldnames or ()))
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise TraceError(str(path), str(error) or repr(error)) from error
    return {series: {at_s: number for at_s, number, _ in each} for series, each in windows.items()}, width_s


def _windows(
    reader: "csv.DictReader[str]", columns: list[str]
) -> tuple[dict[str, list[tuple[float, int, float]]], float]:
    """Return of each series (second the window begins, requests, variation of the gaps), and the windows' length."""
    names = [column for column in SERIES_COLUMNS if column in columns]
    counted = next(column for column in COUNT_COLUMNS if column in columns)
    windows: dict[str, list[tuple[float, int, float]]] = defaultdict(list)
    for row in reader:
        entry = (float(row["window_start_s"]), int(float(row[counted])), float(row.get("iat_cv") or 1.0))
        windows["/".join(row[name] for name in names) or "all"].append(entry)
    begins = sorted({begin_s for each in windows.values() for begin_s, _, _ in each})
    return windows, float(min(np.diff(begins), default=MINUTE_S))


def _minutes(reader: "csv.DictReader[str]", columns: list[str], service: Service) -> Iterator[tuple[str, float, float]]:
    names = [column for column in columns if column != "minute"]
    first: float | None = None
    for row in reader:
        minute = float(row["minute"])
        first = minute if first is None else first
        for name in names:
            number = round(float(row[name]) / TOKENS_A_REQUEST) if name == TOKENS_COLUMN else int(row[name])
            for at_s in _drawn(name, (minute - first) * MINUTE_S, MINUTE_S, number, 1.0):
                yield name, at_s, service.fixed_s


def _drawn(series: str, begin_s: float, width_s: float, number: int, burstiness: float) -> list[float]:
    """Return ``number`` times in the window: gaps of a Gamma renewal process with that coefficient of variation."""
    rng = np.random.default_rng([crc32(series.encode()), int(begin_s)])
    if burstiness == 1.0:
        return sorted((begin_s + width_s * rng.random(number)).tolist())
    shape = 1.0 / max(burstiness, 0.05) ** 2
    gaps = rng.gamma(shape, 1.0, number + 1) + 1e-12
    within = np.cumsum(gaps)[:-1] / math.fsum(gaps)
    return (begin_s + width_s * within).tolist()
