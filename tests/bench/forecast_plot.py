"""The picture of `forecast.py`: what each policy leaves unused, and how many users it keeps waiting."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(judged: Mapping[tuple[str, str], Mapping[str, Any]], picture: Path) -> None:
    """Writes a point for each policy in a panel for each trace and profile."""
    columns = min(3, len(judged))
    rows = -(-len(judged) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False)
    for axis, ((trace, profile), policies) in zip(axes.flat, judged.items(), strict=False):
        for name, each in policies.items():
            hours, late = each.outcome.unused_s / 3600, 100 * (1 - each.outcome.within(1.0))
            axis.plot(hours, late, "o", color="tab:blue" if name == "ours" else "gray")
            axis.annotate(name, (hours, late), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axis.axhline(5, color="lightgray", linewidth=1)
        axis.set_title(f"{trace}\n{profile}", fontsize=9)
        axis.set_xlabel("unused device hours", fontsize=8)
        axis.set_ylabel("late by more than 1 s, %", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
