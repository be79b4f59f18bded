"""The picture of `throughput.py`: a panel a metric, bars for medians, dots for samples."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from throughput_samples import BATCH, METRICS, SINGLE, TITLES, Metric, Sample, by_round

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = {"stock": "#999999", "flashserve": "#0072B2", "ray": "#E69F00"}
PANELS: tuple[tuple[Metric, int], ...] = (
    ("output_tokens_per_s", BATCH),
    ("ttft_ms", SINGLE),
    ("ttft_ms", BATCH),
    ("tpot_ms", SINGLE),
    ("tpot_ms", BATCH),
    ("serving_cpu_ms_per_token", BATCH),
)


def plot(samples: Sequence[Sample], caption: str, path: Path) -> None:
    """Writes the picture; `caption` says where it was measured."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for axis, (metric, concurrency) in zip(axes.flat, PANELS, strict=True):
        draw_panel(axis, samples, metric, concurrency)
    rounds = len({sample.round_index for sample in samples})
    figure.suptitle(f"64 tokens in, 64 out; bars are medians of {rounds} rounds, dots the rounds")
    figure.supxlabel(caption, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_panel(axis: Axes, samples: Sequence[Sample], metric: Metric, concurrency: int) -> None:
    """One bar a server, from zero, with its value on top."""
    label, unit = METRICS[metric]
    measured = [server for server in TITLES if by_round(samples, server, concurrency, metric)]
    for place, server in enumerate(measured):
        values = list(by_round(samples, server, concurrency, metric).values())
        median = float(np.median(values))
        axis.bar(place, median, width=0.6, color=COLOURS[server])
        offsets = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else [0.0]
        axis.scatter(place + np.asarray(offsets), values, s=16, color="black", alpha=0.65, zorder=3)
        axis.annotate(f"{median:.3g}", (place, max(*values, median)), (0, 5), textcoords="offset points", ha="center")
    axis.set_xticks(range(len(measured)), [TITLES[server] for server in measured])
    axis.set_ylabel(unit)
    axis.set_title(f"{label}, {concurrency} at a time", fontsize=11)
    axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
    axis.spines[["top", "right"]].set_visible(False)
