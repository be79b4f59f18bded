"""Stands for a Serve handle where what it leads to lives in the same event loop."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Method:
    call: Any

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        return self.call(*arguments)


class LocalHandle:
    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._target, name))
