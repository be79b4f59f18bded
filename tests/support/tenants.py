"""Files of tenants for tests, with keys made for them."""

from pathlib import Path
from typing import Any

import yaml

from app.api_keys import hashed, key_id, new_key


class KeysFile:
    """A file of tenants that is written as operators are told to: beside it, then renamed."""

    def __init__(self, path: Path, **tenants: dict[str, Any]) -> None:
        """``tenants`` are sections without names and keys; each gets one key."""
        self.path = path
        self.keys = {name: new_key() for name in tenants}
        self.sections = {
            name: {"name": name, "keys": [stored(self.keys[name])]} | section for name, section in tenants.items()
        }
        self.write()

    def change(self, name: str, **section: Any) -> None:
        self.sections[name] |= section
        self.write()

    def write(self) -> None:
        self.write_text(yaml.safe_dump({"tenants": list(self.sections.values())}))

    def write_text(self, text: str) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(self.path)


def stored(key: str) -> dict[str, Any]:
    return {"id": key_id(key), "hash": hashed(key)}
