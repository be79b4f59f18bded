"""What can go wrong while the demo models are fetched and prepared.

Every field goes positionally to ``super().__init__``, so that the errors survive pickling between processes.
"""


class DemoError(Exception):
    """Base of every error of this package; ``str()`` is one sentence for the user."""


class FetchError(DemoError):
    """A file could not be downloaded; what has arrived is kept and continued by the next run."""

    def __init__(self, filename: str, reason: str) -> None:
        super().__init__(filename, reason)
        self.filename = filename
        self.reason = reason

    def __str__(self) -> str:
        return f"Could not download {self.filename}: {self.reason}."


class DigestError(DemoError):
    """A downloaded file is not the one the catalogue names; it has been deleted."""

    def __init__(self, filename: str, expected_sha256: str, actual_sha256: str) -> None:
        super().__init__(filename, expected_sha256, actual_sha256)
        self.filename = filename
        self.expected_sha256 = expected_sha256
        self.actual_sha256 = actual_sha256

    def __str__(self) -> str:
        return (
            f"Deleted {self.filename} because its sha256 is {self.actual_sha256[:12]}… "
            f"where {self.expected_sha256[:12]}… was expected."
        )


class PrepareError(DemoError):
    """A model directory could not be built; whatever stood there before is untouched."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model = model
        self.reason = reason

    def __str__(self) -> str:
        return f"Could not prepare {self.model}: {self.reason}."
