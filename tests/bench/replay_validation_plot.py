"""The picture of `replay_validation.py`: how many requests had waited for how long, served and replayed."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(served_s: np.ndarray, replayed_s: np.ndarray, picture: Path) -> None:
    """Writes the two distributions of added waiting, [requests] in seconds each."""
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, waits_s, style in (("served", served_s, "-"), ("replayed", replayed_s, "--")):
        axis.step(np.sort(waits_s), np.arange(1, len(waits_s) + 1) / len(waits_s), style, where="post", label=name)
    axis.set_xlabel("seconds that a first token was later than that of an idle engine")
    axis.set_ylabel("share of requests")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend()
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
