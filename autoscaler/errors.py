"""What can go wrong in forecasting and scaling.

AutoscalerError
├── HistoryError          the database of arrivals can't be read or written; scaling goes on reactively
├── ImportFormatError     a log to import is not in the expected form; nothing of it was kept
├── TraceError            a trace to replay can't be read
├── ReportError           what a gateway or replica says can't be understood, or built on; nothing of it was kept
└── ForecastError         a forecaster could not be fitted, or gave no usable numbers

All are picklable: every field is positional and goes to ``Exception.__init__``.
"""


class AutoscalerError(Exception):
    """Root of this package's errors."""


class HistoryError(AutoscalerError):
    """The arrival history in the file ``path`` could not be used."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"The arrival history in {self.path} can't be used: {self.reason}"


class ImportFormatError(AutoscalerError):
    """Line or entry ``place`` of the log ``path`` is not in the expected form."""

    def __init__(self, path: str, place: str, reason: str) -> None:
        super().__init__(path, place, reason)
        self.path = path
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}, {self.place}: {self.reason}. Nothing was imported."


class TraceError(AutoscalerError):
    """The trace ``path`` can't be replayed."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"The trace {self.path} can't be replayed: {self.reason}"


class ForecastError(AutoscalerError):
    """The forecaster ``name`` gave no usable forecast."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"The forecaster '{self.name}' gave no usable forecast: {self.reason}"


class ReportError(AutoscalerError):
    """What a gateway or a replica says of itself can't be understood."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"A report to the forecaster can't be understood: {self.reason}"
