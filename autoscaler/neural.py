"""NeuralProphet, in this file only: one global model over all series, fitted in a process of its own.

Covers: fitting with bounded threads and time, forecasts for all series in one call, versions on disk. Does not cover:
what a version says (``neural_network``, which needs nothing of NeuralProphet), when to fit, and whether to believe it
(``accuracy``): it is judged like any other, and used only where it is better.

Traps of NeuralProphet 0.9: it uses ``numpy.NaN``, which numpy 2 has no more, and its search for a learning rate breaks
on this torch.
"""

import multiprocessing
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoscaler.errors import ForecastError
from autoscaler.neural_network import BROKEN, Network, Season, scaled_by
from autoscaler.types import Floats, Past

NAME = "NeuralProphet"
VERSIONS_KEPT = 3
FITTING_NICE = 10
THREADS = 1
EPOCH_S = 1_700_006_400  # a Monday's midnight, for clocks that begin at zero


@dataclass(frozen=True)
class Shape:
    """What is fitted: ``lags`` past buckets, ``steps`` coming ones, at these quantiles (the median among them)."""

    lags: int = 12
    steps: int = 6
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    epochs: int = 20
    learning_rate: float = 0.02
    batch: int = 1024


def fit(past: Past, names: Sequence[str], shape: Shape, directory: Path, *, timeout_s: float) -> Path:
    """Fit on ``past``, whose series are called ``names``, and return where the new version lies; old ones are removed.

    Runs in a process of its own, which has one thread, a low priority and ``timeout_s``; this process imports
    nothing of it. Raises ForecastError if it fails or takes too long; older versions stay usable.
    """
    versions = sorted(directory.glob("version-*.npz"))
    number = int(versions[-1].stem.removeprefix("version-")) + 1 if versions else 1
    path = directory / f"version-{number:06}.npz"
    directory.mkdir(parents=True, exist_ok=True)
    _apart(_fit, (past, list(names), shape, path), timeout_s)
    for old in versions[: -(VERSIONS_KEPT - 1)]:
        old.unlink(missing_ok=True)
    return path


def predict(path: Path, past: Past, names: Sequence[str]) -> Floats:
    """Return [series, buckets, steps, quantiles]: what the version at ``path`` says after each bucket of ``past``.

    A series that it was not fitted on is as large as in ``past``; the others are as large as they were then. By name,
    for models come and go between a fit and a forecast. Entry [:, t] knows buckets up to and including t, so [:, -1] is
    the forecast; NaN where there are too few before it. Raises ForecastError.
    """
    try:
        network = Network.load(path)
    except BROKEN as error:
        raise ForecastError(NAME, f"the version {path.name} is missing or damaged") from error
    scales = scaled_by(network.scales, names, _scales(past.counts))[:, None]
    known = np.where(np.isnan(past.counts), 0.0, past.counts) / scales
    return network.forecast(known, _begin_s(past), past.step_s) * scales[..., None, None]


def _apart(work: Any, arguments: tuple[Any, ...], timeout_s: float) -> Any:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_answer, args=(answers, work, arguments), daemon=True)
    process.start()
    try:
        kind, value = answers.get(timeout=timeout_s)
    except Empty:
        reason = "it ended without an answer" if process.exitcode else f"it took more than {timeout_s:g} s"
        raise ForecastError(NAME, reason) from None
    finally:
        process.kill()
        process.join()
    if kind == "error":
        raise ForecastError(NAME, str(value))
    return value


def _answer(answers: Any, work: Any, arguments: tuple[Any, ...]) -> None:
    os.nice(FITTING_NICE)
    try:
        answers.put(("value", work(*arguments)))
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked has to know
        answers.put(("error", f"{type(error).__name__}: {error}"))


def _library() -> Any:
    warnings.simplefilter("ignore")
    vars(np)["NaN"] = np.nan  # not written as np.NaN, which linters put right
    import neuralprophet  # noqa: PLC0415 - seconds, and only in the process that fits
    import torch  # noqa: PLC0415

    torch.set_num_threads(THREADS)
    neuralprophet.set_log_level("ERROR")
    neuralprophet.set_random_seed(0)
    return neuralprophet


def _fit(past: Past, names: list[str], shape: Shape, path: Path) -> None:
    scales = _scales(past.counts)
    model = trained(past, scales, shape)
    learnt(model, dict(zip(names, scales.tolist(), strict=True))).save(path)


def trained(past: Past, scales: Floats, shape: Shape) -> Any:
    """Return NeuralProphet's own model, fitted in this process."""
    library = _library()
    lower_upper = [quantile for quantile in shape.quantiles if quantile != 0.5]  # noqa: PLR2004 - the median is implied
    model = library.NeuralProphet(
        n_lags=shape.lags,
        n_forecasts=shape.steps,
        quantiles=lower_upper,
        yearly_seasonality=False,
        weekly_seasonality=past.buckets * past.step_s > 14 * 86400,
        daily_seasonality=True,
        growth="off",
        learning_rate=shape.learning_rate,
        epochs=shape.epochs,
        batch_size=shape.batch,
        normalize="off",
        drop_missing=True,
    )
    model.fit(
        _frame(past, scales, split=shape.lags + shape.steps), freq=f"{int(past.step_s)}s", progress=None, metrics=False
    )
    return model


def learnt(model: Any, scales: Mapping[str, float]) -> Network:
    """Return what a fitted model of NeuralProphet's holds."""
    weights = {name: each.numpy().astype(float) for name, each in model.model.state_dict().items()}
    quantiles = tuple(model.model.quantiles)
    lags = weights["ar_net.0.weight"]
    seasons = tuple(
        Season(float(each.period), weights[f"seasonality.season_params.{name}"][:, 0])
        for name, each in model.config_seasonality.periods.items()
        if each.resolution
    )
    steps = lags.shape[0] // len(quantiles)
    return Network(weights["trend.bias"], lags.reshape(steps, len(quantiles), -1), seasons, quantiles, scales)


def stretches(known: NDArray[np.bool_], longest: int) -> list[slice]:
    """Return the buckets in which somebody counted, as stretches without a gap of ``longest`` or more, the last first.

    Stretches that are themselves shorter are left out, but for the last.
    """
    places = np.flatnonzero(known)
    if len(places) == 0:
        return [slice(0, len(known))]
    ends = np.flatnonzero(np.diff(places) > longest)
    firsts, lasts = [places[0], *places[ends + 1]], [*places[ends], places[-1]]
    found = [slice(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
    return [each for each in reversed(found) if each is found[-1] or each.stop - each.start >= longest]


def _scales(counts: Floats) -> Floats:
    """Return [series]: what each is divided by, so that one model fits large and small ones."""
    means = np.nanmean(np.where(np.isfinite(counts), counts, np.nan), axis=1)
    return np.where(np.isfinite(means) & (means > 0), means, 1.0)


def _frame(past: Past, scales: Floats, *, split: int | None = None) -> Any:
    """Return what NeuralProphet takes; with ``split`` as series of their own what such a gap is between.

    Across longer gaps, or with one at the beginning, it fits weights that are no numbers.
    """
    import pandas as pd  # noqa: PLC0415 - with NeuralProphet

    times = pd.to_datetime(_begin_s(past) + past.step_s * np.arange(past.buckets), unit="s").round("1s")
    parts = (
        [slice(0, past.buckets)]
        if split is None
        else stretches(np.asarray(np.isfinite(past.counts).any(axis=0)), split)
    )
    return pd.concat(
        pd.DataFrame(
            {
                # The last one's name is the series' own: it is asked for by that.
                "ID": str(row) if number == 0 else f"{row}, {number} gaps ago",
                "ds": times[part],
                "y": past.counts[row, part] / scales[row],
            }
        )
        for row in range(past.counts.shape[0])
        for number, part in enumerate(parts)
    )


def _begin_s(past: Past) -> float:
    """Return when the first bucket begins, a Unix time."""
    return past.end_s - past.buckets * past.step_s + (EPOCH_S if past.end_s < EPOCH_S else 0)
