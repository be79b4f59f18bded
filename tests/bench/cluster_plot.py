"""The picture of `cluster.py`: the time until all nodes have the snapshot, by their number."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(samples: Mapping[tuple[str, str, int], Sequence[float]], picture: Path) -> None:
    """Writes a panel for each link of S3; `samples` are seconds by (link, way, nodes)."""
    links = list(dict.fromkeys(link for link, _, _ in samples))
    figure, axes = plt.subplots(1, len(links), figsize=(4.5 * len(links), 3.4), squeeze=False, sharey=True)
    for axis, link in zip(axes[0], links, strict=True):
        ways = dict.fromkeys(way for other, way, _ in samples if other == link)
        for way in ways:
            counts = [count for other, other_way, count in samples if (other, other_way) == (link, way)]
            (line,) = axis.plot(counts, [np.median(samples[link, way, count]) for count in counts], "o-", label=way)
            for count in counts:
                took_s = samples[link, way, count]
                axis.plot([count] * len(took_s), took_s, ".", color=line.get_color(), markersize=4)
        axis.set_xticks(sorted({count for _, _, count in samples}))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("nodes")
        axis.set_ylabel("seconds until all have it")
        axis.set_title(link, fontsize=10)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
