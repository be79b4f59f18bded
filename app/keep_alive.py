"""``keep_alive`` of a request: how long its model stays awake after it, written as Ollama's clients write it."""

import math
import re
from typing import Any

from app.errors import InvalidRequestError

# As a sampling argument of vLLM's own it rides through vLLM's OpenAI classes, which drop fields they don't know.
SAMPLING_ARGUMENT = "flashserve_keep_awake_s"
FIELD = "keep_alive"

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")


def keep_awake_s(value: Any) -> float:
    """Return the seconds that ``value`` stands for: a number of seconds or a duration such as ``"1h30m"``.

    Negative ones mean for ever (``math.inf``), and 0 that the model may sleep at once.

    Raises:
        InvalidRequestError: it is neither.
    """
    if isinstance(value, str):
        negative, text = value.startswith("-"), value.removeprefix("-")
        if _PART.sub("", text) == "" and text:
            seconds = sum(float(count) * _UNITS_S[unit] for count, unit in _PART.findall(text))
            return math.inf if negative and seconds else seconds
    elif isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return math.inf if value < 0 else float(value)
    message = f"`{FIELD}` is a number of seconds or a duration such as '10m' or '1h30m'; negative means for ever."
    raise InvalidRequestError(message, FIELD)
