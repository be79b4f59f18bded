"""An adapter where it comes from: a directory, or a remote folder, in PEFT layout, checked before it is copied.

Covers: which files it takes, reading their beginnings by ranges, values of weights, the digest. Weights are safetensors
only: pickled ones can run code when they are loaded. Does not cover: whether it fits (``adapter_check``), copies on
this node (``adapter_files``).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.adapter_check import MAX_ADAPTER_BYTES, MAX_CONFIG_BYTES, UnfitAdapterError, check_config, check_tensors
from storage.errors import AdapterError, RemoteMissingError
from storage.folders import FileInfo, Folder, read_into
from storage.promote import CopyPolicy, with_retries
from storage.tensor_header import LENGTH_BYTES, Tensor, header_bytes, parse_header

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Somebody waits for the answer.
_POLICY = CopyPolicy(attempts=3, deadline_s=30.0)
_BLOCK_VALUES = 1 << 20
# By type: as what values are read, and the bits that are all set in one that is no number, or infinite.
_EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "F16": (np.dtype("<u2"), 0x7C00), "BF16": (np.dtype("<u2"), 0x7F80), "F32": (np.dtype("<u4"), 0x7F800000),
}  # fmt: skip


@dataclass(frozen=True)
class AdapterSource:
    """What was found of an adapter before its weights are read."""

    rank: int
    files: tuple[FileInfo, FileInfo]
    tensors: Mapping[str, Tensor]

    @property
    def size_bytes(self) -> int:
        """What a copy of it takes."""
        return sum(file.size_bytes for file in self.files)


def look_at(folder: Folder, base: Mapping[str, Any], max_rank: int) -> AdapterSource:
    """Check an adapter of a model with the configuration ``base``, as far as that goes without its weights.

    Raises:
        AdapterError: it can't be used.
        RemoteError: its place doesn't answer; RemoteMissingError if there is nothing.
    """
    try:
        config, weights = _files(with_retries(folder.url, folder.list_files, _POLICY))
        rank = check_config(_parsed(_read(folder, config, 0, config.size_bytes)), max_rank)
        tensors = _header(folder, weights)
        check_tensors(tensors, rank, base)
    except UnfitAdapterError as error:
        raise AdapterError(folder.url, str(error)) from error
    return AdapterSource(rank, (config, weights), tensors)


def is_there(folder: Folder) -> bool:
    """Tell whether there is an adapter, fit or not. Raises RemoteError: its place doesn't answer."""
    try:
        return any(file.path == CONFIG_NAME for file in with_retries(folder.url, folder.list_files, _POLICY))
    except RemoteMissingError:
        return False


def check_values(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that all weights of the adapter in ``directory`` are finite numbers.

    Raises:
        AdapterError: some aren't.
        OSError: they can't be read.
    """
    with (directory / WEIGHTS_NAME).open("rb") as file:
        for name, tensor in tensors.items():
            if tensor.dtype not in _EXPONENTS:
                continue
            dtype, exponent = _EXPONENTS[tensor.dtype]
            file.seek(tensor.start)
            left = (tensor.end - tensor.start) // dtype.itemsize
            while left:
                values = np.fromfile(file, dtype, min(left, _BLOCK_VALUES))
                if not len(values):
                    raise AdapterError(str(directory), f"its weights end within '{name[:120]}'")
                if bool(((values & exponent) == exponent).any()):
                    raise AdapterError(str(directory), f"its weights '{name[:120]}' hold NaN or infinity")
                left -= len(values)


def digest_of(directory: Path) -> str:
    """Return the SHA-256 of an adapter's configuration and weights, in hex. Raises OSError."""
    digest = hashlib.sha256((directory / CONFIG_NAME).read_bytes())
    with (directory / WEIGHTS_NAME).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def base_config(directory: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a base model; empty where it has none that can be read: then nothing is known."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _files(listed: list[FileInfo]) -> tuple[FileInfo, FileInfo]:
    files = {file.path: file for file in listed}
    config, weights = files.get(CONFIG_NAME), files.get(WEIGHTS_NAME)
    if config is None:
        raise UnfitAdapterError(f"it has no {CONFIG_NAME}")
    if weights is None:
        is_pickled = any(name.endswith(_PICKLED) for name in files)
        raise UnfitAdapterError(f"it has no {WEIGHTS_NAME}{' (pickled weights are not loaded)' if is_pickled else ''}")
    if config.size_bytes > MAX_CONFIG_BYTES:
        raise UnfitAdapterError(f"its {CONFIG_NAME} has {config.size_bytes} bytes")
    if weights.size_bytes > MAX_ADAPTER_BYTES:
        raise UnfitAdapterError(f"it has {weights.size_bytes} bytes, and {MAX_ADAPTER_BYTES} are allowed")
    return config, weights


def _header(folder: Folder, weights: FileInfo) -> dict[str, Tensor]:
    try:
        first = _read(folder, weights, 0, min(LENGTH_BYTES, weights.size_bytes))
        length = header_bytes(first, weights.size_bytes)
        return parse_header(_read(folder, weights, LENGTH_BYTES, length), weights.size_bytes)
    except UnfitAdapterError:
        raise
    except ValueError as error:
        raise UnfitAdapterError(f"its {WEIGHTS_NAME} can't be used: {error}") from error


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnfitAdapterError(f"its {CONFIG_NAME} is not a LoRA configuration") from error


def _read(folder: Folder, file: FileInfo, start: int, count: int) -> bytes:
    content = bytearray(count)
    with_retries(folder.url, lambda: read_into(folder, file, start, memoryview(content)), _POLICY)
    return bytes(content)
