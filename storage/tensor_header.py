"""The header of a safetensors file, read without torch: which tensors it has, and where.

Covers: parsing, and what the format promises of a file. Does not cover: values (``adapter_source``), snapshots' files
(``weights``).
"""

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 * 1024 * 1024
_METADATA = "__metadata__"
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: ``start`` and ``end`` are offsets in bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_bytes(first: bytes, file_bytes: int) -> int:
    """Return how long the header is that a file of ``file_bytes`` begins with, by its ``first`` 8 bytes.

    Raises:
        ValueError: no safetensors file begins so.
    """
    if len(first) < LENGTH_BYTES:
        message = "it is too short for a safetensors file"
        raise ValueError(message)
    (length,) = struct.unpack("<Q", first[:LENGTH_BYTES])
    if not len("{}") <= length <= min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        message = "it is no safetensors file"
        raise ValueError(message)
    return length


def parse_header(text: bytes, file_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a file of ``file_bytes`` with this header, by name, in the order of their bytes.

    Raises:
        ValueError: the header is malformed, or not this file's.
    """
    try:
        entries = json.loads(text)
        tensors = {
            name: _tensor(entry, LENGTH_BYTES + len(text)) for name, entry in entries.items() if name != _METADATA
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        message = "its header is malformed"
        raise ValueError(message) from error
    at = LENGTH_BYTES + len(text)
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    for name, tensor in ordered.items():
        item_bytes = _ITEM_BYTES.get(tensor.dtype)
        if item_bytes is None:
            message = f"tensor '{name[:200]}' is of type '{tensor.dtype[:20]}'"
            raise ValueError(message)
        if tensor.start != at or tensor.end - tensor.start != math.prod(tensor.shape) * item_bytes:
            message = f"the bytes of tensor '{name[:200]}' are not where they should be"
            raise ValueError(message)
        at = tensor.end
    if at != file_bytes:
        message = f"it has {file_bytes} bytes, and its header speaks of {at}"
        raise ValueError(message)
    return ordered


def _tensor(entry: dict[str, Any], offset: int) -> Tensor:
    start, end = entry["data_offsets"]
    numbers = [start, end, *entry["shape"]]
    if not isinstance(entry["dtype"], str) or any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError
    return Tensor(entry["dtype"], tuple(entry["shape"]), offset + start, offset + end)
