"""The picture of `cluster_decisions.py`: what a decision costs by the size of the cluster."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

PANELS = (("choice", "replicas = models", 1.0), ("plan", "replicas = models", 1.0), ("replay", "models", 600.0))


def plot(curves: Mapping[str, Mapping[int, float]], picture: Path) -> None:
    """Writes a panel for each kind of decision, with its curves by size and its target as a line."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.4))
    for axis, (kind, sizes, target) in zip(axes, PANELS, strict=True):
        for name, curve in curves.items():
            if name.startswith(kind):
                axis.plot(list(curve), list(curve.values()), "o-", label=name)
        axis.axhline(target, color="gray", linestyle="--", linewidth=1, label="target")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(sizes)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
