"""NeuralProphet, fitted for real: its traps are avoided, it learns, it can't hang or break whoever asks it."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoscaler import neural
from autoscaler.actor import ForecasterActor
from autoscaler.errors import ForecastError
from autoscaler.history import History
from autoscaler.neural import Shape, fit, predict
from autoscaler.types import Count, Floats, Past

STEP_S, DAY = 3600.0, 24
SHAPE = Shape(lags=6, steps=3, epochs=40, batch=32)
NAMES = ("large", "small")


@pytest.fixture(scope="module")
def past() -> Past:
    rng = np.random.default_rng(5)
    rate = 200 + 150 * np.sin(np.arange(14 * DAY) / DAY * 2 * np.pi)
    return Past(np.stack([rng.poisson(rate), rng.poisson(rate / 20)]).astype(float), STEP_S, 14 * DAY * STEP_S)


@pytest.fixture(scope="module")
def version(past: Past, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(past.until(10 * DAY), NAMES, SHAPE, tmp_path_factory.mktemp("neural"), timeout_s=300)


@pytest.fixture(scope="module")
def said(past: Past, version: Path) -> Floats:
    return predict(version, past, NAMES)


def test_it_learns_the_day_better_than_the_mean(past: Past, said: Floats) -> None:
    assert said.shape == (2, 14 * DAY, 3, 3)
    for series in range(2):
        came = past.counts[series, 10 * DAY + 1 :]
        missed = came - said[series, 10 * DAY : -1, 0, 1]
        assert np.abs(missed).mean() < 0.6 * np.abs(came - came.mean()).mean()


def test_what_comes_later_changes_nothing(past: Past, version: Path, said: Floats) -> None:
    changed = past.counts.copy()
    changed[:, 12 * DAY :] = 9999.0
    other = predict(version, Past(changed, STEP_S, past.end_s), NAMES)
    cut = slice(0, 12 * DAY)
    assert np.array_equal(said[:, cut], other[:, cut], equal_nan=True)


def by_its_own_predict(past: Past, known: Past, path: Path) -> Floats:
    """What NeuralProphet itself says of ``known``, fitted on ``past``; what it has learnt is written to ``path``."""
    scales = neural._scales(past.counts)
    model = neural.trained(past, scales, SHAPE)
    neural.learnt(model, dict(zip(NAMES, scales, strict=True))).save(path)
    future = model.make_future_dataframe(neural._frame(known, scales), periods=SHAPE.steps, n_historic_predictions=True)
    values = np.full((*known.counts.shape, SHAPE.steps, len(SHAPE.quantiles)), np.nan)
    for name, rows in model.predict(future, decompose=False).groupby("ID"):
        for step in range(SHAPE.steps):
            for index, suffix in enumerate((" 10.0%", "", " 90.0%")):
                # Row r says what was expected of bucket r, ``step + 1`` buckets before it.
                said = rows[f"yhat{step + 1}{suffix}"].to_numpy(float)[step + 1 : step + 1 + known.buckets]
                values[int(name), : len(said), step, index] = said * scales[int(name)]
    return values


@pytest.mark.parametrize("days", [10, 20], ids=["of days", "of days and weeks"])
def test_what_it_has_learnt_says_what_neuralprophet_says(past: Past, tmp_path: Path, days: int) -> None:
    twice = Past(np.tile(past.counts, 2)[:, : (days + 4) * DAY], STEP_S, (days + 4) * DAY * STEP_S)
    path = tmp_path / "version-000001.npz"
    expected = neural._apart(by_its_own_predict, (twice.until(days * DAY), twice, path), 300)
    said = predict(path, twice, NAMES)
    assert np.isfinite(said[:, SHAPE.lags - 1 :]).all()
    assert np.isnan(said[:, : SHAPE.lags - 1]).all()
    assert np.allclose(said, expected, rtol=1e-4, atol=1e-3, equal_nan=True)


def test_models_that_come_and_change_places_keep_their_size(past: Past, version: Path, said: Floats) -> None:
    large, small = past.counts
    other = Past(np.stack([small, small * 30, large]), STEP_S, past.end_s)
    expected = predict(version, other, ("small", "came later", "large"))
    assert expected[0, -1] == pytest.approx(said[1, -1], rel=1e-3)
    assert expected[2, -1] == pytest.approx(said[0, -1], rel=1e-3)
    assert expected[1, -1] == pytest.approx(30 * said[1, -1], rel=0.1)


def test_long_gaps_are_no_fault(past: Past, tmp_path: Path) -> None:
    """Nobody counted before, nor for days in the middle, nor in some hours."""
    counts = np.concatenate([np.full((2, 5 * DAY), np.nan), past.counts], axis=1)
    counts[:, 7 * DAY : 10 * DAY] = np.nan
    counts[:, 12 * DAY : 12 * DAY + 3] = np.nan
    holes = Past(counts, STEP_S, past.end_s)
    version = fit(holes, NAMES, replace(SHAPE, epochs=5), tmp_path, timeout_s=300)
    assert np.isfinite(predict(version, past, NAMES)[:, -1]).all()


def test_a_fit_that_takes_too_long_is_ended(past: Past, tmp_path: Path) -> None:
    with pytest.raises(ForecastError, match="more than"):
        fit(past, NAMES, SHAPE, tmp_path, timeout_s=0.5)
    assert not list(tmp_path.glob("version-*"))


@pytest.mark.parametrize("content", [None, b"nothing of the kind"])
def test_a_version_that_is_broken_is_an_error(past: Past, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "version-000001.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ForecastError, match=path.name):
        predict(path, past, NAMES)


def test_one_that_was_cut_is_too(past: Past, version: Path, tmp_path: Path) -> None:
    path = tmp_path / version.name
    path.write_bytes(version.read_bytes()[:-300])
    with pytest.raises(ForecastError, match="damaged"):
        predict(path, past, NAMES)


async def test_the_forecaster_fits_it_and_asks_it(tmp_path: Path) -> None:
    """What the forecaster makes of its history is what can be fitted, and what comes back is what it expects."""
    now_s = time.time()
    with History(tmp_path / "history.db") as history:
        counts = [Count("m", now_s - 300 * index, 30 + 20 * (index % 288 < 100)) for index in range(3 * 288)]
        history.import_log(counts, now_s)
    forecaster = ForecasterActor({"refit_s": 1e6}, str(tmp_path / "history.db"))
    await forecaster.serves({"m": ("pool", 8)}, {"pool": (0, 1, {})})
    await forecaster._see_fine()
    await forecaster._refit()
    past = forecaster._past(("m",), 300, now_s, 4 * 86400.0)
    said = await forecaster._neural_says(("m",), past)
    assert said is not None
    assert said.shape == (1, forecaster._steps, 3)
    assert np.isfinite(said).all()
    assert 10 < said[0, 0, 1] < 80
    await forecaster.close()
