import math
from typing import Any

import pytest

from app.errors import InvalidRequestError
from app.keep_alive import keep_awake_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0), (5, 5), (2.5, 2.5), (-1, math.inf), ("0s", 0), ("-1m", math.inf), ("10m", 600), ("1h30m", 5400),
        ("1.5h", 5400), ("250ms", 0.25), ("1m500ms", 60.5),
    ],
)  # fmt: skip
def test_durations(value: Any, seconds: float) -> None:
    assert keep_awake_s(value) == seconds


@pytest.mark.parametrize("value", ["", "-", "5", "m", "5 m", "5d", True, None, [], {}, math.nan, "\u0661m"])
def test_anything_else_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        keep_awake_s(value)
    assert caught.value.param == "keep_alive"
