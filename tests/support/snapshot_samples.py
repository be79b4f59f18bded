"""Small snapshots for tests, made without torch."""

import json
import random
import struct
from pathlib import Path

from storage.manifest import MANIFEST_NAME, Manifest, Origin
from storage.snapshot import describe_directory


def origin(checkpoint: str = "a" * 64) -> Origin:
    return Origin(checkpoint, "bfloat16", None, 1, "cpu", "0.29.0")


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A safetensors file of ``name: (dtype, shape, content)``."""
    header, offset = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(content for _, _, content in tensors.values())


def make_snapshot(directory: Path, seed: int = 0, weights_bytes: int = 4096) -> Manifest:
    """Write a snapshot with random weights into ``directory``; every seed has its own id."""
    content = random.Random(seed).randbytes(weights_bytes)  # noqa: S311 - test data
    (directory / "sub").mkdir(parents=True)
    half = weights_bytes // 2
    weights = {"a": ("U8", [half], content[:half]), "b": ("U8", [weights_bytes - half], content[half:])}
    (directory / "rank-00.safetensors").write_bytes(safetensors_bytes(weights))
    (directory / "config.json").write_text("{}")
    (directory / "sub" / "empty.txt").write_text("")
    manifest = describe_directory(f"model-{seed}", origin(f"{seed:064x}"), directory)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest


def make_snapshot_of_files(directory: Path, count: int, each_bytes: int = 1000, seed: int = 0) -> Manifest:
    """Write a snapshot of ``count`` small files, which are as many chunks, with random content."""
    chance = random.Random(seed)  # noqa: S311 - test data
    directory.mkdir(parents=True)
    for number in range(count):
        (directory / f"part-{number:03d}.txt").write_bytes(chance.randbytes(each_bytes))
    manifest = describe_directory(f"files-{seed}", origin(f"{seed:064x}"), directory)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return manifest
