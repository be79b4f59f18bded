"""The bench's comparisons, on a small trace."""

from pathlib import Path

import autoscale
import numpy as np
import pytest
from autoscale import BOUND, COMPARED, OURS, at_equal_cost, at_equal_waiting, judge, knowledge
from report import Result

from autoscaler.layers import PROFILES
from autoscaler.traces import Arrivals, Trace
from autoscaler.types import Floats, Past


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    return {
        "timer": Arrivals(np.arange(0, 20_000, 400.0), np.full(50, 3.0)),
        "people": Arrivals(np.sort(rng.random(60)) * 20_000, np.full(60, 3.0)),
    }


@pytest.fixture(autouse=True)
def _without_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(past: Past, fitted: int) -> Floats:
        assert fitted < past.buckets * 0.41
        return np.full_like(past.counts, np.nan)

    monkeypatch.setattr(autoscale, "ets", silent)


def test_every_policy_is_judged_and_compared(trace: Trace, tmp_path: Path) -> None:
    known, neural = knowledge(trace)
    assert not neural, "some hours are too short for it"
    policies, replayed = judge(trace, PROFILES["gpu-7b"], known)
    assert set(policies) == {*COMPARED, OURS, BOUND}
    assert replayed > 30 * 110
    assert policies[OURS].tried == policies["ours without NeuralProphet"].tried
    assert policies[BOUND].point.cold == 0
    assert policies[BOUND].point.idle_s <= min(each.point.idle_s for each in policies.values() if each.point.cold == 0)
    there = {"trace": policies}
    found: list[Result] = [*at_equal_waiting(there, "gpu-7b"), *at_equal_cost(there, "gpu-7b")]
    assert len({(each.name, each.compared_with) for each in found}) == len(found)
    saved = next(each for each in found if "p95 in 1 s" in each.name and "idle saved" in each.name)
    assert 0.32 < saved.value < 1, "a timer, and an asleep layer that others don't know"
    autoscale.plot({("trace", "gpu-7b"): policies}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
