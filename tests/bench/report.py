"""The result file, the table and the interval that every bench uses.

Covers `bench-results/NAME.json`, whose shape is `Report`, and the printed table. What is measured, and the targets,
belong to each bench.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from machine import Machine, describe_machine
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

RESULTS_DIR = Path("bench-results")
CONFIDENCE = 0.95
TABLE_WIDTH = 140
Interval = tuple[float, float]


@dataclass(frozen=True)
class Target:
    """A value to reach: at least ("min") or at most ("max") `value`, in the unit of the result.

    If it is `strict`, reaching `value` exactly is not enough.
    """

    value: float
    direction: Literal["min", "max"]
    strict: bool = False

    def __str__(self) -> str:
        sign = {("min", False): "≥", ("min", True): ">", ("max", False): "≤", ("max", True): "<"}
        return f"{sign[self.direction, self.strict]} {self.value:g}"

    def met_by(self, measured: float) -> bool:
        """Whether the measured value is on the right side."""
        if self.strict and measured == self.value:
            return False
        return measured >= self.value if self.direction == "min" else measured <= self.value


@dataclass(frozen=True)
class Result:
    """One measured value; `samples` are what it was computed from, in the same unit and in the order measured."""

    name: str
    value: float
    unit: str
    samples: tuple[float, ...]
    target: Target | None = None
    compared_with: str | None = None
    interval: Interval | None = None

    def as_json(self) -> dict[str, object]:
        """The entry in the result file."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target.value if self.target else None,
            "direction": self.target.direction if self.target else None,
            "met": self.target.met_by(self.value) if self.target else None,
            "compared_with": self.compared_with,
            "interval_95": list(self.interval) if self.interval else None,
            "samples": list(self.samples),
        }


@dataclass(frozen=True)
class Report:
    """Everything one bench found; `notes` are sentences the reader needs beside the numbers."""

    name: str
    machine: Machine
    commit: str
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The content of the result file."""
        return {**asdict(self), "results": [result.as_json() for result in self.results]}


def median_result(
    name: str,
    samples: Sequence[float],
    unit: str,
    target: Target | None = None,
    compared_with: str | None = None,
) -> Result:
    """The median of the samples with its interval; for a comparison the samples are paired ratios or differences."""
    return Result(
        name, float(np.median(samples)), unit, tuple(samples), target, compared_with, median_interval(samples)
    )


def median_interval(samples: Sequence[float]) -> Interval | None:
    """The 95 % confidence interval of the median, or None: fewer than six samples can't give one.

    Method: the order statistics interval that inverts the sign test (scipy.stats.quantile_test; W. J. Conover,
    Practical Nonparametric Statistics, 3rd ed. 1999, section 3.2). Exact for independent samples from any
    distribution; it needs neither the symmetry that Wilcoxon's does nor the many samples that a bootstrap does.
    """
    interval = stats.quantile_test(np.asarray(samples), q=0.0, p=0.5).confidence_interval(CONFIDENCE)
    if not np.isfinite([interval.low, interval.high]).all():
        return None
    return float(interval.low), float(interval.high)


def make_report(name: str, results: Sequence[Result], notes: Sequence[str] = ()) -> Report:
    """Adds machine and commit."""
    return Report(name, describe_machine(), current_commit(), tuple(results), tuple(notes))


def current_commit() -> str:
    """The short commit id, with "-dirty" where tracked files differ from it; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_report(report: Report, results_dir: Path = RESULTS_DIR) -> Path:
    """Writes the result file and returns its path."""
    results_dir.mkdir(parents=True, exist_ok=True)
    path = results_dir / f"{report.name}.json"
    path.write_text(json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n")
    return path


def wide_console() -> Console:
    """The terminal; where there is none, as in a log file, wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints the table, and below it the notes."""
    console = console or wide_console()
    machine = report.machine
    memory_gib = machine["memory_bytes"] / 2**30
    table = Table(
        box=box.SIMPLE,
        title=f"{report.name} at {report.commit}",
        caption=f"{machine['cpu']}, {machine['cores']} cores, {memory_gib:.0f} GiB, {machine['gpu']}",
    )
    for heading in ("result", "median", "unit", "95 % interval", "n", "compared with", "target"):
        table.add_column(heading, justify="right" if heading in {"median", "n"} else "left")
    for result in report.results:
        table.add_row(*table_row(result))
    console.print(table)
    for note in report.notes:
        console.print(f"- {note}", highlight=False)


def table_row(result: Result) -> list[str]:
    """The cells of one result, in the order of the table's headings."""
    interval = f"{result.interval[0]:.4g} to {result.interval[1]:.4g}" if result.interval else "-"
    target = f"{result.target}, {'met' if result.target.met_by(result.value) else 'MISSED'}" if result.target else "-"
    return [
        result.name,
        f"{result.value:.4g}",
        result.unit,
        interval,
        str(len(result.samples)),
        result.compared_with or "-",
        target,
    ]
