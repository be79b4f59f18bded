"""A picture of a bench's results as they are in its file: a panel a unit, for benches that have none of their own."""

from pathlib import Path

import matplotlib as mpl
from report import RESULTS_DIR, Report, Result

mpl.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which stay apart for colour-blind readers.
PLAIN, MET, MISSED = "#999999", "#0072B2", "#D55E00"
ROW_INCHES, PANEL_INCHES = 0.26, 0.8


def write_picture(report: Report, results_dir: Path = RESULTS_DIR) -> Path:
    """Writes bars for values, dots for samples and a line for each target; returns the picture's path."""
    by_unit: dict[str, list[Result]] = {}
    for result in report.results:
        by_unit.setdefault(result.unit, []).append(result)
    rows = [len(results) for results in by_unit.values()]
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(9, ROW_INCHES * sum(rows) + PANEL_INCHES * len(rows)), squeeze=False,
        layout="constrained", height_ratios=rows,
    )  # fmt: skip
    for axis, (unit, results) in zip(axes[:, 0], by_unit.items(), strict=True):
        _panel(axis, unit, results)
    figure.suptitle(f"{report.name}: grey has no target, blue met it, orange missed it", fontsize=9)
    results_dir.mkdir(parents=True, exist_ok=True)
    picture = results_dir / f"{report.name}.png"
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


def _panel(axis: plt.Axes, unit: str, results: list[Result]) -> None:
    for place, result in enumerate(results):
        colour = PLAIN
        if result.target is not None:
            colour = MET if result.target.met_by(result.value) else MISSED
            axis.plot([result.target.value] * 2, [place - 0.45, place + 0.45], color="black", linewidth=1.5)
        axis.barh(place, result.value, color=colour, height=0.7)
        axis.plot(result.samples, [place] * len(result.samples), ".", color="black", markersize=3, alpha=0.5)
    axis.set_yticks(range(len(results)), [result.name for result in results], fontsize=7)
    axis.invert_yaxis()
    axis.tick_params("x", labelsize=7)
    axis.set_xlabel(unit, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
