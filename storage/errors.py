"""What can go wrong with a model's or an adapter's files.

StorageError
├── SourceError             a model's source can't be used
├── AdapterError            an adapter's files can't be used
├── ManifestError           a manifest is malformed, or describes what may not be
├── CorruptSnapshotError    a snapshot's file is not what its manifest says
├── SnapshotMissingError    there is no such snapshot here
├── SnapshotBusyError       a snapshot is in use and can't be removed
├── TierFullError           a tier has no room, also after everything that may go has gone
├── NotKeptError            what is to be remembered beside a tier can't be read or written
├── StoreUnreachableError   the node's snapshot store can't be asked
├── DeviceError             a device can't do what is asked of it
└── RemoteError             a remote place doesn't give what was asked for
    ├── RemoteMissingError  it has no such thing
    ├── RemoteDeniedError   it refuses access
    └── RemoteChangedError  what it holds changed while it was read

All are picklable: every field is positional and goes to ``Exception.__init__``.
"""


class StorageError(Exception):
    """Root of this package's errors."""


class SourceError(StorageError):
    """``source`` can't be used as a model."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"source '{self.source}' can't be used: {self.reason}"


class AdapterError(StorageError):
    """The adapter at ``path`` can't be used."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"adapter '{self.path}' can't be used: {self.reason}"


class ManifestError(StorageError):
    """The manifest at ``where`` can't be used."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"the manifest at {self.where} can't be used: {self.reason}"


class CorruptSnapshotError(StorageError):
    """``file`` of the snapshot at ``where`` is not what the manifest says."""

    def __init__(self, where: str, file: str, reason: str) -> None:
        super().__init__(where, file, reason)
        self.where = where
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return f"the snapshot at {self.where} is damaged: {self.file} {self.reason}"


class SnapshotMissingError(StorageError):
    """No snapshot here is called ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"there is no snapshot '{self.name}' here"


class SnapshotBusyError(StorageError):
    """``name`` is held by ``leases`` leases."""

    def __init__(self, name: str, leases: int) -> None:
        super().__init__(name, leases)
        self.name = name
        self.leases = leases

    def __str__(self) -> str:
        return f"snapshot '{self.name}' is in use ({self.leases} leases)"


class TierFullError(StorageError):
    """``tier`` can't hold ``needed_bytes`` more; ``free_bytes`` are what could be freed."""

    def __init__(self, tier: str, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(tier, needed_bytes, free_bytes)
        self.tier = tier
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes

    def __str__(self) -> str:
        return f"the {self.tier} tier is full: {self.needed_bytes} bytes are needed, {self.free_bytes} can be had"


class NotKeptError(StorageError):
    """``file`` beside a tier can't be read or written."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file = file
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file} can't be used: {self.reason}"


class StoreUnreachableError(StorageError):
    """The snapshot store ``name`` can't be asked."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} can't be reached: {self.reason}"


class DeviceError(StorageError):
    """``device`` can't do what is asked of it."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason)
        self.device = device
        self.reason = reason

    def __str__(self) -> str:
        return f"device {self.device}: {self.reason}"


class RemoteError(StorageError):
    """``url`` doesn't give what was asked for."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.url}: {self.reason}"


class RemoteMissingError(RemoteError):
    """There is nothing at ``url``."""


class RemoteDeniedError(RemoteError):
    """Access to ``url`` is refused."""


class RemoteChangedError(RemoteError):
    """What is at ``url`` changed while it was read."""
