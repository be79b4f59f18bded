"""A tiny wheel for tests: its file and what the catalogue would make of it."""

from dataclasses import dataclass
from pathlib import Path

from app.demo.catalog import DemoModel


@dataclass(frozen=True)
class TinyWheel:
    """The file at ``path`` and the model the catalogue would make of it."""

    path: Path
    model: DemoModel
