"""The picture of `coldstart.py`: time to the first token in each case, and the stages of starts."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(samples: Mapping[str, list[float]], stages: Mapping[str, list[dict[str, float]]], picture: Path) -> None:
    """Writes bars of the medians in seconds, with every sample as a dot, and below them the stages of each start."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(9, 6.5), height_ratios=[3, 2])
    for place, (name, values) in enumerate(reversed(samples.items())):
        upper.barh(place, np.median(values), color="lightgray" if "stock" in name or "raw" in name else "tab:blue")
        upper.plot(values, [place] * len(values), ".", color="black", markersize=4)
    upper.set_yticks(range(len(samples)), list(reversed(samples)), fontsize=8)
    upper.set_xscale("log")
    upper.set_xlabel("seconds to the first token")
    colours: dict[str, object] = {}
    for place, rounds in enumerate(stages.values()):
        left = 0.0
        for stage in rounds[0]:
            width = float(np.median([each.get(stage, 0.0) for each in rounds]))
            colour = colours.setdefault(stage, plt.get_cmap("tab20")(len(colours) % 20))
            lower.barh(place, width, left=left, color=colour, label=stage if place == 0 else None)
            left += width
    lower.set_yticks(range(len(stages)), list(stages), fontsize=8)
    lower.set_xlabel("seconds of an engine's start, by stage")
    lower.legend(fontsize=6, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
