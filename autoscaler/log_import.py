"""Existing logs as arrival history: CSV with a request a line, and Prometheus' range exports of a counter.

Covers: reading and checking. Does not cover: keeping (``history``). A file is read whole before anything of it is kept.
"""

import csv
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from autoscaler.errors import ImportFormatError
from autoscaler.types import Count

TIME_COLUMNS = ("timestamp_s", "timestamp", "time", "ts")
SERIES_COLUMNS = ("model_id", "model", "series")
TOKEN_COLUMNS = ("generated_tokens", "tokens", "completion_tokens")
MODEL_LABELS = ("model_name", "model", "model_id")


def counts_from_csv(path: Path, *, series: str | None = None, begin_s: float = 0.0) -> list[Count]:
    """Return what arrived in each second, from a log with a header and a request a line (``.gz`` works).

    Times are seconds, to which ``begin_s`` is added, or ISO 8601 with a time zone. ``series`` names what has no model
    column. Raises ImportFormatError.
    """
    requests: Counter[tuple[str, int]] = Counter()
    tokens: Counter[tuple[str, int]] = Counter()
    with _open(path) as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or ()
        time_column = _column(columns, TIME_COLUMNS)
        if time_column is None:
            raise ImportFormatError(str(path), "line 1", f"there is none of the columns {', '.join(TIME_COLUMNS)}")
        series_column, token_column = _column(columns, SERIES_COLUMNS), _column(columns, TOKEN_COLUMNS)
        if series_column is None and series is None:
            raise ImportFormatError(str(path), "line 1", "there is no column 'model', and no series was named")
        for line in reader:
            place = f"line {reader.line_num}"
            at_s = _time_s(line[time_column], path, place, begin_s)
            name = (line[series_column] if series_column else None) or series
            if not name:
                raise ImportFormatError(str(path), place, "the model is empty")
            key = (name, math.floor(at_s))
            requests[key] += 1
            if token_column and line[token_column]:
                tokens[key] += int(_number(line[token_column], path, place))
    return [Count(name, second, count, tokens[name, second]) for (name, second), count in requests.items()]


def counts_from_prometheus(path: Path, *, series: str | None = None) -> list[Count]:
    """Return the increases of a counter, from the JSON answer of Prometheus' ``/api/v1/query_range``.

    An increase between two samples counts at the later one; a counter that falls was restarted. The series is the
    label ``model_name``, ``model`` or ``model_id``, else ``series``. Raises ImportFormatError.
    """
    try:
        answer = json.loads(path.read_text())
        results = answer["data"]["result"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImportFormatError(str(path), "the whole", f"this is no range query's answer ({error!r})") from error
    counts: list[Count] = []
    for index, result in enumerate(results):
        place = f"data.result[{index}]"
        labels, values = result.get("metric", {}), result.get("values")
        name = next((labels[label] for label in MODEL_LABELS if label in labels), series)
        if name is None:
            raise ImportFormatError(str(path), place, "no label names the model, and no series was named")
        if not isinstance(values, list):
            raise ImportFormatError(str(path), place, "there are no 'values'")
        counts += _increases(str(name), values, path, place)
    return counts


def _increases(name: str, values: list[Any], path: Path, place: str) -> Iterator[Count]:
    before: float | None = None
    for sample in values:
        if not isinstance(sample, list) or len(sample) != 2:  # noqa: PLR2004 - time and value
            raise ImportFormatError(str(path), place, f"{sample!r} is no pair of time and value")
        value = _number(sample[1], path, place)
        if before is not None:
            increase = round(value - before if value >= before else value)
            if increase > 0:
                yield Count(name, math.floor(_number(sample[0], path, place)), increase)
        before = value


def _open(path: Path) -> TextIO:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", newline="")
        return path.open(newline="")
    except OSError as error:
        raise ImportFormatError(str(path), "the file", str(error)) from error


def _column(columns: Any, wanted: tuple[str, ...]) -> str | None:
    return next((column for column in wanted if column in columns), None)


def _time_s(text: str, path: Path, place: str, begin_s: float) -> float:
    try:
        return _number(text, path, place) + begin_s
    except ImportFormatError:
        try:
            when = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            raise ImportFormatError(str(path), place, f"{text!r} is neither seconds nor ISO 8601") from None
        if when.tzinfo is None:
            raise ImportFormatError(str(path), place, f"{text!r} has no time zone") from None
        return when.timestamp()


def _number(text: Any, path: Path, place: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ImportFormatError(str(path), place, f"{text!r} is no number") from None
    if not math.isfinite(value):
        raise ImportFormatError(str(path), place, f"{text!r} is no finite number")
    return value
