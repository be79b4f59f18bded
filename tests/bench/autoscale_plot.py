"""The picture of `autoscale.py`: what each policy leaves idle, and what its users wait, one panel a trace."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = 4
MARKS = "osv^<>DPX*hpd"


def plot(judged: Mapping[tuple[str, str], Mapping[str, Any]], picture: Path) -> None:
    """Writes idle device hours against requests later than a second: ours as a line, the others as they were set."""
    rows = -(-len(judged) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3.4 * COLUMNS, 2.9 * rows), squeeze=False)
    for axis in axes.flat[len(judged) :]:
        axis.axis("off")
    for axis, ((trace, profile), policies) in zip(axes.flat, judged.items(), strict=False):
        line = sorted((point.idle_s / 3600, 100 * (1 - point.soon)) for point in policies["ours"].tried.values())
        axis.plot(*zip(*line, strict=True), "-", color="tab:blue", linewidth=1)
        for mark, (name, each) in zip(MARKS, policies.items(), strict=False):
            color = "tab:blue" if name == "ours" else "black" if name == "clairvoyant" else "gray"
            late = 100 * (1 - each.point.soon)
            axis.plot(each.point.idle_s / 3600, late, mark, color=color, markersize=5, label=name)
        axis.axhline(5, color="lightgray", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(f"{trace}\n{profile}", fontsize=8)
        axis.set_xlabel("idle device hours", fontsize=7)
        axis.set_ylabel("later than 1 s, %", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.5 / rows / 2.9 + 0.02, 1, 1))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
