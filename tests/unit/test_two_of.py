"""Two replicas by chance among many, without those that are out of the question."""

from collections import Counter

import pytest

from deployments.router import two_of


@pytest.mark.parametrize(
    ("replicas", "without", "expected"),
    [
        ("abcdef", {"a", "b"}, {"c", "d", "e", "f"}),
        ("abc", {"a"}, {"b", "c"}),
        ("ab", {"a", None}, {"b"}),
        ("ab", {"a", "b"}, {"a", "b"}),
        ("a", {"x"}, {"a"}),
    ],
)
def test_each_of_the_others_is_as_likely(replicas: str, without: set[str | None], expected: set[str]) -> None:
    drawn = [two_of(list(replicas), without, str) for _ in range(500)]
    assert all(len(set(pair)) == min(2, len(expected)) for pair in drawn)
    counts = Counter(name for pair in drawn for name in pair)
    assert set(counts) == expected
    assert min(counts.values()) > 0.6 * sum(counts.values()) / len(expected)
