"""The picture of `staging.py`: the speed of each way, step by step."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(samples: Mapping[tuple[str, str], list[float]], ours: str, picture: Path) -> None:
    """Writes bars of the medians, with every sample as a dot; `samples` are bytes per second by (step, way)."""
    steps = list(dict.fromkeys(step for step, _ in samples))
    figure, axes = plt.subplots(1, len(steps), figsize=(4 * len(steps), 3.6), squeeze=False)
    for axis, step in zip(axes[0], steps, strict=True):
        ways = [way for other, way in samples if other == step]
        for place, way in enumerate(ways):
            speeds = np.asarray(samples[step, way]) / 1e6
            axis.bar(place, np.median(speeds), color="tab:blue" if way == ours else "lightgray", width=0.6)
            axis.plot([place] * len(speeds), speeds, ".", color="black", markersize=4)
        axis.set_xticks(range(len(ways)), [way.replace(" ", "\n", 1) for way in ways], fontsize=8)
        axis.set_title(step, fontsize=10)
        axis.set_ylabel("MB/s")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
