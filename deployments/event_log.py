"""One line an event, for people and for programs: a name, then ``key=value`` with JSON's strings where that is needed.

Covers: the form of such lines, and having the project's loggers write where Serve's do, which is where Ray's dashboard
and `ray logs` look. Does not cover: what is worth a line.
"""

import json
import logging
import re
from logging.handlers import MemoryHandler
from typing import Literal

# What can stand without quotes, and be told from what has them.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/~@+-]+")
PACKAGES = ("app", "deployments", "autoscaler", "storage")


def event_line(event: str, **fields: str | float | None) -> str:
    """Return the line; fields that are None are left out, and seconds have milliseconds."""
    parts = (f"{key}={_value(value)}" for key, value in fields.items() if value is not None)
    return " ".join((event, *parts))


def _value(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    # A client's words must not look like other fields, nor begin a line of their own.
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class _LastingBuffer(MemoryHandler):
    """A buffer in front of Serve's file that can't be shut down.

    Importing vLLM configures logging, and Python then shuts all handlers down that there are. Files open themselves
    again with the next line, but a buffer loses its file: nothing that the replica says would be seen from then on,
    nor what Serve says in it.
    """

    def __init__(self, instead_of: MemoryHandler) -> None:
        super().__init__(instead_of.capacity, instead_of.flushLevel, instead_of.target)
        self.filters = instead_of.filters
        self.level = instead_of.level

    def close(self) -> None:
        """Write what is there, and go on."""
        self.flush()


def log_with(whose: Literal["ray.serve", "ray"]) -> None:
    """Have this process' loggers of ours write where Serve's does (in a replica) or Ray's (in any other actor).

    That is its file, its level, and in replicas the ids of Serve's requests.
    """
    parent = logging.getLogger(whose)
    for handler in list(parent.handlers):
        if (
            isinstance(handler, MemoryHandler)
            and not isinstance(handler, _LastingBuffer)
            and handler.target is not None
        ):
            parent.removeHandler(handler)
            parent.addHandler(_LastingBuffer(handler))
    for package in PACKAGES:
        own = logging.getLogger(package)
        own.parent = parent
        own.setLevel(logging.NOTSET)
