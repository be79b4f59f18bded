"""The picture of `lora.py`: a panel a part, bars for medians, dots for samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#999999", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")


def plot(
    panels: Mapping[str, Sequence[str]], units: Mapping[str, tuple[str, float]], samples: Mapping, picture: Path
) -> None:
    """Writes bars by title of a panel; ``samples`` are by (name, whose), ``units`` a name and a factor by panel."""
    shown = {title: [name for name in names if _whose(name, samples)] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure, axes = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 4), squeeze=False, layout="constrained")
    everybody = list(dict.fromkeys(whose for _, whose in samples))
    for axis, (title, names) in zip(axes[0], shown.items(), strict=True):
        unit, factor = units[title]
        for place, name in enumerate(names):
            for index, whose in enumerate(_whose(name, samples)):
                values = np.asarray(samples[name, whose]) * factor
                at = place + 0.4 * index - 0.2
                axis.bar(at, np.median(values), width=0.36, color=COLOURS[everybody.index(whose)], label=whose)
                axis.plot([at] * len(values), values, ".", color="black", markersize=3, alpha=0.5)
        axis.set_xticks(range(len(names)), [name.rpartition(", ")[2] for name in names], fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {label: bar for axis in axes[0] for bar, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _whose(name: str, samples: Mapping) -> list[str]:
    return [whose for other, whose in samples if other == name]
