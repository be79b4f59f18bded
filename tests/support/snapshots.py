"""Snapshots that an engine has just written, as tests need them: described in place, and changed."""

import shutil
from pathlib import Path

import torch

from deployments.snapshot_builder import origin_of
from deployments.types import ModelSpec
from storage.manifest import MANIFEST_NAME, Origin, parse_manifest
from storage.snapshot import describe_directory
from storage.weights import map_tensors, rank_file, write_tensors


def describe(spec: ModelSpec, directory: Path) -> Path:
    """Make a snapshot of the weights that an engine of `spec` wrote into `directory`."""
    return _describe(spec.id, origin_of(spec, "0" * 64), directory)


def changed(snapshot: Path, target: Path, name: str, change) -> Path:  # noqa: ANN001 - from tensor to tensor
    """A sound snapshot like this one, but with one tensor changed."""
    manifest = parse_manifest((snapshot / MANIFEST_NAME).read_bytes(), "")
    tensors = map_tensors(snapshot / rank_file(0), manifest.tensors)
    assert name in tensors
    shutil.copytree(snapshot, target, ignore=shutil.ignore_patterns("*.safetensors", MANIFEST_NAME))
    write_tensors(target / rank_file(0), tensors | {name: change(tensors[name].clone())})
    return _describe(manifest.name, manifest.origin, target)


def _describe(name: str, origin: Origin, directory: Path) -> Path:
    manifest = describe_directory(name, origin, directory)
    (directory / MANIFEST_NAME).write_bytes(manifest.to_json())
    return directory


def one_value_negated(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.view(-1)
    flat[flat.abs().argmax()] *= -1
    return tensor
