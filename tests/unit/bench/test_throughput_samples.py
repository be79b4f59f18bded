import pytest
from throughput_samples import BATCH, FLASHSERVE, RAY_LLM, SINGLE, STOCK, Sample, summarize


def sample(round_index: int, server: str, concurrency: int, rate_per_s: float, ttft_ms: float) -> Sample:
    return Sample(round_index, server, concurrency, rate_per_s, ttft_ms, 20.0, 2.0, 1.0)


def both_loads(round_index: int, server: str, rate_per_s: float, ttft_ms: float) -> list[Sample]:
    return [sample(round_index, server, concurrency, rate_per_s, ttft_ms) for concurrency in (BATCH, SINGLE)]


def value_of(samples: list[Sample], name: str, compared_with: str) -> float:
    found = [r for r in summarize(samples) if r.name == name and r.compared_with == compared_with]
    assert len(found) == 1
    return found[0].value


def test_ratios_are_paired_by_round_before_the_median() -> None:
    # The ratio of the medians would be 200 / 200.
    samples = []
    for round_index, (flashserve_per_s, stock_per_s) in enumerate([(99, 100), (300, 200), (200, 400)]):
        samples += both_loads(round_index, FLASHSERVE, flashserve_per_s, 100)
        samples += both_loads(round_index, STOCK, stock_per_s, 100)
    name = "FlashServe: output tokens at 16, paired ratio"
    assert value_of(samples, name, "stock vLLM") == pytest.approx(0.99)


def test_ttft_against_stock_is_a_difference_in_ms() -> None:
    samples = both_loads(0, FLASHSERVE, 100, 152.0) + both_loads(0, STOCK, 100, 140.0)
    result = next(r for r in summarize(samples) if r.name == "FlashServe: median TTFT at 1, paired difference")
    assert (result.value, result.unit, result.compared_with) == (12.0, "ms", "stock vLLM")
    assert result.target
    assert result.target.met_by(result.value)


def test_a_tie_with_ray_serve_llm_is_not_enough() -> None:
    samples = both_loads(0, FLASHSERVE, 100, 140.0) + both_loads(0, RAY_LLM, 100, 140.0)
    compared = [r for r in summarize(samples) if r.compared_with == "Ray Serve LLM"]
    assert compared
    assert not any(r.target.met_by(r.value) for r in compared)


def test_rounds_that_only_one_server_finished_are_not_compared() -> None:
    samples = both_loads(0, FLASHSERVE, 50, 1) + both_loads(0, STOCK, 100, 1) + both_loads(1, STOCK, 400, 1)
    assert value_of(samples, "FlashServe: output tokens at 16, paired ratio", "stock vLLM") == 0.5


def test_rows_of_a_server_that_was_not_measured_are_left_out() -> None:
    results = summarize(both_loads(0, STOCK, 100, 140) + both_loads(0, RAY_LLM, 90, 180))
    assert results
    assert not any("FlashServe" in r.name or "FlashServe" in str(r.compared_with) for r in results)
