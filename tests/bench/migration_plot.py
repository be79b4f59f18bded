"""The picture of `migration.py`: gaps by context, beside what is usual and what a killed replica costs."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(gaps_ms: Mapping[int, list[float]], usual_ms: list[float], lost_ms: list[float], picture: Path) -> None:
    """Writes a line of the medians in milliseconds with every sample as a dot."""
    figure, axis = plt.subplots(figsize=(8, 4.5))
    contexts = list(gaps_ms)
    axis.plot(contexts, [np.median(gaps_ms[context]) for context in contexts], color="tab:blue", label="migration")
    for context in contexts:
        axis.plot([context] * len(gaps_ms[context]), gaps_ms[context], ".", color="black", markersize=4)
    usual = float(np.median(usual_ms))
    axis.axhline(usual, color="lightgray", label="usual time between two tokens")
    axis.axhline(5 * usual + 100, color="tab:red", linestyle=":", label="5 of them and 100 ms")
    axis.axhline(float(np.median(lost_ms)), color="tab:orange", label="replica killed, 512 tokens")
    axis.set_yscale("log")
    axis.set_xlabel("tokens of context")
    axis.set_ylabel("longest gap at the client, ms")
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
