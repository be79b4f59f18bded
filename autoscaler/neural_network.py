"""What NeuralProphet learnt, as arrays, and its network's forward pass over all series at once. Pure, but for the file.

Covers: an AR-Net without hidden layers and Fourier seasons without growth (O. Triebe et al., NeuralProphet, 2021,
sections 2.2 to 2.4), as ``neural`` fits it. Does not cover: fitting. A contract test holds that NeuralProphet's own
``predict`` says the same; it takes tens of seconds to import, and makes a frame and a loader of each series.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoscaler.types import Floats

DAY_S = 86400.0
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What reading a version raises that is missing, cut or no version."""


@dataclass(frozen=True)
class Season:
    """``weights`` are [quantiles, 2 · order]: of the sines and cosines of ``period_days`` and its parts, in turn."""

    period_days: float
    weights: Floats


@dataclass(frozen=True)
class Network:
    """A version: ``trend`` [quantiles], ``lags`` [steps, quantiles, lags], the median first among the quantiles.

    What it has for other quantiles is their distance from the median. ``scales`` are what each series it was fitted on
    is divided by, by name.
    """

    trend: Floats
    lags: Floats
    seasons: tuple[Season, ...]
    quantiles: tuple[float, ...]
    scales: Mapping[str, float]

    def save(self, path: Path) -> None:
        """Write it whole or not at all. Raises OSError."""
        arrays: dict[str, Any] = {f"season{number}": each.weights for number, each in enumerate(self.seasons)}
        about = {
            "quantiles": self.quantiles,
            "periods_days": [each.period_days for each in self.seasons],
            "scales": dict(self.scales),
        }
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            np.savez(file, trend=self.trend, lags=self.lags, about=np.array(json.dumps(about)), **arrays)
        temporary.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Network":
        """Raises one of ``BROKEN``."""
        with np.load(path, allow_pickle=False) as file:
            about: dict[str, Any] = json.loads(str(file["about"]))
            seasons = tuple(
                Season(period_days, file[f"season{number}"]) for number, period_days in enumerate(about["periods_days"])
            )
            return cls(file["trend"], file["lags"], seasons, tuple(about["quantiles"]), about["scales"])

    def forecast(self, values: Floats, begin_s: float, step_s: float) -> Floats:
        """Return [series, buckets, steps, quantiles], quantiles rising, from [series, buckets] of scaled values.

        ``begin_s`` is the first bucket's begin, a Unix time. Entry [:, t] knows buckets up to and including t; it is
        NaN where there are fewer than the network's lags.
        """
        steps, quantiles, lags = self.lags.shape
        series, buckets = values.shape
        found = np.full((series, buckets, steps, quantiles), np.nan)
        if buckets < lags:
            return found
        # [buckets + steps, quantiles]: the same for all series.
        steady = np.tile(self.trend, (buckets + steps, 1))
        for each in self.seasons:
            steady += _fourier(begin_s + step_s * np.arange(buckets + steps), each) @ each.weights.T
        # What is expected without them is taken from the lags; the network sees what differs.
        differs = np.lib.stride_tricks.sliding_window_view(values - steady[:buckets, 0], lags, axis=1)
        coming = np.lib.stride_tricks.sliding_window_view(steady[lags:], steps, axis=0).transpose(0, 2, 1)
        found[:, lags - 1 :] = np.einsum("swl,tql->swtq", differs, self.lags, optimize=True) + coming
        return self._in_order(found)

    def _in_order(self, found: Floats) -> Floats:
        """Return quantiles from distances, which none may have crossed another by."""
        median, others = found[..., 0], self.quantiles[1:]
        below = [1 + index for index, each in enumerate(others) if each < self.quantiles[0]]
        above = [1 + index for index, each in enumerate(others) if each > self.quantiles[0]]
        columns = {0: median}
        for side, sign in ((below[::-1], -1.0), (above, 1.0)):
            distance = np.zeros_like(median)
            for column in side:
                distance = np.maximum(distance, found[..., column])
                columns[column] = median + sign * distance
        return np.stack([columns[column] for column in [*below, 0, *above]], axis=-1)


def scaled_by(scales: Mapping[str, float], names: Sequence[str], own: Floats) -> Floats:
    """Return [series]: what a version knows of each name, and its own size for one it was not fitted on."""
    return np.array([scales.get(name, size) for name, size in zip(names, own, strict=True)])


def _fourier(at_s: Floats, season: Season) -> Floats:
    """Return [buckets, 2 · order]."""
    # NeuralProphet takes Unix times in single precision, which is up to a minute off; weights were fitted to that.
    days: NDArray[np.float32] = at_s.astype(np.float32) / np.float32(DAY_S)
    orders = range(1, 1 + season.weights.shape[1] // 2)
    angles = [np.float32(2.0 * order * np.pi) * days / season.period_days for order in orders]
    return np.stack([part(angle) for angle in angles for part in (np.sin, np.cos)], axis=1).astype(float)
