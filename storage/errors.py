"""What can go wrong with a model's or an adapter's files.

StorageError
├── SourceError    a model's source can't be used
└── AdapterError   an adapter's files can't be used

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
