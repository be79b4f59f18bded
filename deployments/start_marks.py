"""Moments of an engine's start, read from what vLLM logs while it starts.

Covers: a logging handler that notes when known messages come by, in whichever of the engine's forked processes, and
the first error. Does not cover: the words for it (``forked_engine.stages_of``). vLLM has no callback for this; its
startup spans need a tracing collector.
"""

import contextlib
import json
import logging
import os
import time
from typing import NamedTuple

# The beginning of a message and the moment it stands for; tests/contract/test_vllm_names.py guards them.
MOMENTS = {
    "Initializing a V1 LLM engine": "core_began",
    "Starting to load model": "device_ready",
    "Loading weights took": "weights_loaded",
    "%d tensors restored": "weights_loaded",
    "Using %s KV cache layout": "model_ready",
    "GPU KV cache size": "memory_known",
    "init engine (profile": "engine_ready",
}

_ERROR = "error"
# A write to a pipe is whole only up to 4096 bytes.
_MAX_REASON_CHARS = 1000


class MarkHandler(logging.Handler):
    """Notes moments and errors; processes forked from this one note theirs in the same place."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._reader_fd, self._writer_fd = os.pipe()
        # What doesn't fit is lost; a full pipe must not hold up an engine.
        os.set_blocking(self._reader_fd, False)
        os.set_blocking(self._writer_fd, False)

    def emit(self, record: logging.LogRecord) -> None:
        """Note the record if it is one of those looked for."""
        name = next((MOMENTS[start] for start in MOMENTS if str(record.msg).startswith(start)), None)
        if name is not None:
            self._write(_Note(name, time.monotonic()))
        elif record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            self._write(_Note(_ERROR, time.monotonic(), reason[:_MAX_REASON_CHARS]))

    def collect(self) -> tuple[dict[str, float], str | None]:
        """Return when each moment came first, in seconds of the monotonic clock, and the first error."""
        notes = self._read()
        errors = [note.text for note in notes if note.name == _ERROR]
        return {note.name: note.at_s for note in reversed(notes) if note.name != _ERROR}, next(iter(errors), None)

    def _write(self, note: "_Note") -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer_fd, json.dumps(note).encode() + b"\n")

    def _read(self) -> list["_Note"]:
        data = bytearray()
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reader_fd, 65536):
                data += chunk
        return [_Note(*json.loads(line)) for line in data.splitlines()]


class _Note(NamedTuple):
    name: str
    at_s: float
    text: str = ""
