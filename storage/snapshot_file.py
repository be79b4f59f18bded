"""The tensors that a safetensors file holds, by its own header, for where there is no manifest. Needs Python alone."""

import json
import struct
from pathlib import Path

from storage.manifest import TensorEntry


def read_entries(path: Path) -> list[TensorEntry]:
    """Return a file's tensors; the file is one of our own making, and is believed."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return [
        TensorEntry(
            name, path.name, entry["dtype"], tuple(entry["shape"]), *(8 + length + at for at in entry["data_offsets"])
        )
        for name, entry in header.items()
    ]
