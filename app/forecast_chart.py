"""A model's demand and its forecast as a chart, in the terminal and as a picture.

Covers: one model, from what ``/admin/plan`` tells of it. Does not cover: asking (``forecast_cli``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import RefusedError

HEIGHT = 6
_BLOCKS = " ▁▂▃▄▅▆▇█"
_UNKNOWN = "·"


@dataclass(frozen=True)
class Chart:
    """Requests a second: [steps] that came, None where nobody counted, and [steps] that are expected after them.

    ``upper`` is the highest quantile of the forecast.
    """

    model: str
    step_s: float
    came: Sequence[float | None]
    expected: Sequence[float | None]
    upper: Sequence[float | None]
    by: str | None


def chart_of(model: str, told: dict[str, Any]) -> Chart:
    """Return the chart of a model from what the plan tells of it."""
    demand, forecast = told["demand"], told["forecast"] or {}
    step_s = demand["step_s"]
    came = [None if each is None else each / step_s for each in demand["requests"]]
    expected: list[float | None] = []
    upper: list[float | None] = []
    if forecast.get("requests"):
        coarse_s, quantiles = forecast["step_s"], sorted(forecast["requests"], key=float)
        ends_s = forecast["made_at_s"] + coarse_s * len(forecast["requests"]["0.5"])
        steps = max(0, min(len(came) // 2, math.floor((ends_s - demand["end_s"]) / step_s)))
        for step in range(steps):
            index = int((demand["end_s"] + step * step_s - forecast["made_at_s"]) // coarse_s)
            for rates, quantile in ((expected, "0.5"), (upper, quantiles[-1])):
                value = forecast["requests"][quantile][index] if index >= 0 else None
                rates.append(None if value is None else value / coarse_s)
    return Chart(model, step_s, came, expected, upper, forecast.get("by"))


def drawn(chart: Chart) -> list[str]:
    """Return the chart as lines for a terminal, with rich's markup."""
    known = [each for each in (*chart.came, *chart.upper, *chart.expected) if each is not None]
    highest = max(known, default=0.0)
    lines = [f"{chart.model}: requests a second, up to {highest:.3g}"]
    for row in reversed(range(HEIGHT)):
        came = "".join(_block(each, highest, row) for each in chart.came)
        expected = "".join(_block(each, highest, row) for each in chart.expected)
        lines.append(f"[blue]{came}[/]│[green]{expected}[/]")
    past, ahead = (f"{len(each) * chart.step_s:.0f} s" for each in (chart.came, chart.expected))
    forecast = f"the next {ahead} by '{chart.by}'" if chart.expected else "no forecast: its idle times decide"
    lines.append(f"the last {past}, and {forecast}")
    return lines


def save(chart: Chart, picture: Path) -> None:
    """Write the chart as a PNG. Raises RefusedError if matplotlib is missing or the file can't be written."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only who wants a picture needs it
    except ImportError as error:
        raise RefusedError("A picture needs matplotlib: pip install matplotlib.") from error
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    number = len(chart.came)
    came = [math.nan if each is None else each for each in chart.came]
    axis.step([(step - number) * chart.step_s for step in range(number)], came, where="post", label="came")
    if chart.expected:
        times = [step * chart.step_s for step in range(len(chart.expected))]
        middle, upper = (
            [math.nan if each is None else each for each in rates] for rates in (chart.expected, chart.upper)
        )
        axis.plot(times, middle, label=f"expected ({chart.by})")
        axis.fill_between(times, middle, upper, alpha=0.3, label="upper quantile")
    axis.set_xlabel("seconds from now")
    axis.set_ylabel("requests a second")
    axis.set_title(chart.model)
    axis.legend(frameon=False)
    try:
        figure.savefig(picture, dpi=150)
    except OSError as error:
        raise RefusedError(f"{picture} can't be written: {error}") from error


def _block(rate: float | None, highest: float, row: int) -> str:
    """Return the part of a column that is in ``row``, which is 0 at the bottom."""
    if rate is None:
        return _UNKNOWN if row == 0 else " "
    eighths = round(8 * HEIGHT * rate / highest) if highest > 0 else 0
    return _BLOCKS[max(0, min(8, eighths - 8 * row))]
