"""The picture of `feed.py`: processor time a token, by way and number of streams."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(cpu_us: Mapping[tuple[str, int, float], Sequence[float]], picture: Path) -> None:
    """Writes bars of the medians with every sample as a dot; `cpu_us` is by (way, streams, step)."""
    figure, axis = plt.subplots(figsize=(7, 3.4))
    labels = [f"{way}\n{count} at once" for way, count, _ in cpu_us]
    for position, samples in enumerate(cpu_us.values()):
        axis.barh(position, np.median(samples), color="tab:blue")
        axis.plot(samples, [position] * len(samples), ".", color="black", markersize=4)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("processor time a token, both ends, µs")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
