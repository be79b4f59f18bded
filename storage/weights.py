"""Weights in a snapshot's files: writing tensors, and mapping them back without copying; the only file with torch here.

Files are safetensors with their data on a page boundary, so that a mapping of the file is aligned for any kernel and
for direct transfers. Does not cover: which tensors an engine has (``deployments.snapshot_loader``).
"""

import ctypes
import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from storage.errors import CorruptSnapshotError
from storage.manifest import TensorEntry
from storage.tensor_header import Tensor

_PAGE_BYTES = 4096
_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def rank_file(rank: int) -> str:
    """Return the name of a tensor-parallel rank's file."""
    return f"rank-{rank:03}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a new safetensors file, in their order.

    Raises:
        OSError: it can't be written.
        KeyError: safetensors has no name for a tensor's type.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Safetensors allows spaces at the header's end; with them the data begins on a page.
    text += b" " * (-(8 + len(text)) % _PAGE_BYTES)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            plain = tensor.detach().cpu().contiguous()
            if plain.numel():
                # Not through numpy, which a machine with torch need not have.
                file.write((ctypes.c_char * plain.nbytes).from_address(plain.data_ptr()))


def map_tensors(path: Path, entries: Iterable[TensorEntry]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file as views of its mapping; nothing is copied.

    The mapping is private: whoever writes to a tensor gets a copy of that page, and the file stays as it is.

    Raises:
        CorruptSnapshotError: the file is missing, or shorter than ``entries`` say.
    """
    entries = list(entries)
    memory = map_file(path)
    if any(entry.end > memory.nbytes for entry in entries):
        raise CorruptSnapshotError(str(path.parent), path.name, f"ends after {memory.nbytes} bytes")
    return {entry.name: memory[entry.start : entry.end].view(dtype_of(entry)).view(entry.shape) for entry in entries}


def dtype_of(entry: TensorEntry | Tensor) -> torch.dtype:
    """Return the type of a tensor's elements. Raises KeyError for one that torch has no type for."""
    return _DTYPES[entry.dtype]


def map_file(path: Path, *, shared: bool = False) -> torch.Tensor:
    """Return a file's mapping as one tensor of uint8: private as in ``map_tensors``, or ``shared``, to be page-locked.

    Locking a private mapping would first copy every page of it; nobody may write to a shared one.

    Raises:
        CorruptSnapshotError: it can't be mapped.
    """
    try:
        with path.open("r+b" if shared else "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise CorruptSnapshotError(str(path.parent), path.name, f"can't be mapped: {error}") from error
    return torch.frombuffer(mapped, dtype=torch.uint8)
