"""The picture of `many_models.py`: how many requests had their first token within how long."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(ours_s: Sequence[float], in_order_s: Sequence[float], picture: Path) -> None:
    """Writes both distributions as curves, the time in seconds on a logarithmic axis."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, values, colour in (("FlashServe", ours_s, "tab:blue"), ("first come, first served", in_order_s, "gray")):
        share = np.arange(1, len(values) + 1) / len(values)
        axes.step(np.sort(values), share, where="post", label=name, color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("seconds to the first token")
    axes.set_ylabel("share of the requests")
    axes.grid(alpha=0.3)
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
