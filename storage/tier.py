"""A local tier: a directory of snapshots, each whole or not there.

Covers: finding, starting, removing, and recovery after a crash. ``disk`` and ``dram`` are the same but for how bytes
get in: dram is mapped memory that a source writes straight into. Does not cover: what is kept (``cache``), copying
(``promote``) and half-written snapshots (``partial``).

    root/<snapshot id>/…     a whole snapshot
    root/.partial/<random>/… one being written; its owner holds a lock on ``.lock`` in it
    root/.trash/…            one being removed
    root/.beside/<id>/…      what engines keep beside a snapshot: compiled code, measurements
"""

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CorruptSnapshotError, ManifestError, SnapshotMissingError
from storage.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from storage.partial import PARTIALS_NAME, PartialSnapshot, TierName, UnfinishedSnapshot, remove_dead

_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """Where a snapshot's files are: the directory ``path`` in ``tier``."""

    tier: TierName
    path: str


class LocalTier:
    """Snapshots below ``root``. Methods block and are thread-safe; several processes may share a root."""

    def __init__(self, name: TierName, root: Path) -> None:
        self.name: TierName = name
        self.root = root
        self._trash = root / ".trash"
        for directory in (root, root / PARTIALS_NAME, self._trash):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def recover(self) -> None:
        """Remove what writers and removers that died have left."""
        remove_dead(self.root)
        for rest in list(self._trash.iterdir()):
            shutil.rmtree(rest, ignore_errors=True)

    def ids(self) -> list[str]:
        """Return the ids of the snapshots that are here, sorted."""
        return sorted(entry.name for entry in self.root.iterdir() if _ID.fullmatch(entry.name))

    def path(self, snapshot_id: str) -> Path:
        """Return the directory of a snapshot, whether it is here or not."""
        return self.root / snapshot_id

    def beside(self, snapshot_id: str) -> Path:
        """Return the directory for what engines keep beside a snapshot, absent or not; it goes with the snapshot."""
        return self.root / ".beside" / snapshot_id

    def __contains__(self, snapshot_id: str) -> bool:
        return self.path(snapshot_id).is_dir()

    def manifest(self, snapshot_id: str) -> Manifest:
        """Return a snapshot's manifest.

        Raises:
            SnapshotMissingError: it is not here.
            ManifestError: its manifest can't be used, or is another one's.
        """
        return read_manifest(self.path(snapshot_id), snapshot_id)

    def begin(self, manifest: Manifest) -> PartialSnapshot:
        """Return an empty snapshot to be filled by a copy, with room for every byte set aside.

        Raises:
            TierFullError: there is no room; nothing is left behind.
        """
        return PartialSnapshot(self.name, self.root, manifest)

    def build(self) -> UnfinishedSnapshot:
        """Return a directory for files whose manifest is made when they are there."""
        return UnfinishedSnapshot(self.name, self.root)

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot; processes that have mapped it keep what they mapped.

        Raises:
            SnapshotMissingError: it is not here.
        """
        rest = self._trash / f"{snapshot_id}.{secrets.token_hex(4)}"
        try:
            self.path(snapshot_id).rename(rest)
        except FileNotFoundError as error:
            raise SnapshotMissingError(snapshot_id) from error
        shutil.rmtree(rest, ignore_errors=True)
        shutil.rmtree(self.beside(snapshot_id), ignore_errors=True)

    def __repr__(self) -> str:
        return f"<LocalTier {self.name} at {self.root}, {len(self.ids())} snapshots>"


def read_manifest(directory: Path, snapshot_id: str) -> Manifest:
    """Return the manifest of the snapshot in ``directory``. Raises as ``LocalTier.manifest``."""
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        if directory.is_dir():
            raise CorruptSnapshotError(str(directory), MANIFEST_NAME, "is missing") from error
        raise SnapshotMissingError(snapshot_id) from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise ManifestError(str(path), f"it has more than {MAX_MANIFEST_BYTES} bytes")
    manifest = parse_manifest(content, str(path))
    if manifest.id != snapshot_id:
        raise ManifestError(str(path), f"it is that of {manifest.id}")
    return manifest
