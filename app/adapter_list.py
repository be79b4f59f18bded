"""Which adapters a model has: those that were found with its configuration, with what was done at run time.

Covers: adding, replacing and removing, keeping it over restarts. Does not cover: checking an adapter
(``adapter_registry``), its files (``storage.adapter_files``), telling whoever follows the list (``catalogue``).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.kept_file import write_kept
from deployments.types import AdapterSpec

logger = logging.getLogger(__name__)

# A model, an owner (None for the operator), and what the adapter is called: nothing else tells two adapters apart.
AdapterKey = tuple[str, str | None, str]


@dataclass(frozen=True)
class AdapterChange:
    """What was done at run time to one adapter: ``spec`` is None where it was removed.

    ``over`` is what it took the place of; None for one that wasn't found with the configuration. One that was
    ``discovered`` took the place of itself: it may, or may not, be found with the configuration next time.
    """

    model: str
    owner: str | None
    id: str
    spec: AdapterSpec | None
    over: AdapterSpec | None
    discovered: bool = False

    @property
    def key(self) -> AdapterKey:
        """Which adapter."""
        return self.model, self.owner, self.id

    def holds_over(self, given: AdapterSpec | None) -> bool:
        """Tell whether it still counts where ``given`` is found with the configuration."""
        return given == self.over or (self.discovered and given is None)


_CHANGES = TypeAdapter(list[AdapterChange])


class AdapterList:
    """What was done; plain data, kept in one file. What is configured is given with each question."""

    def __init__(self, given: Mapping[str, Iterable[AdapterSpec]], file: Path) -> None:
        """``given`` are the adapters found with the configuration, by model."""
        self._file = file
        self._changes: dict[AdapterKey, AdapterChange] = {}
        for change in self._read():
            if change.model in given and not change.holds_over(_found(given[change.model], change.key)):
                # Whoever edits what is configured means it.
                logger.warning("what was done to adapter %s at run time is void: its files have changed", change.key)
            else:
                self._changes[change.key] = change

    def of(self, model_id: str, given: Iterable[AdapterSpec]) -> tuple[AdapterSpec, ...]:
        """Return a model's adapters, in order of owner and name."""
        adapters: dict[AdapterKey, AdapterSpec | None] = {(model_id, spec.owner, spec.id): spec for spec in given}
        for key, change in self._changes.items():
            if change.model == model_id and change.holds_over(adapters.get(key)):
                adapters[key] = change.spec
        found = (spec for spec in adapters.values() if spec is not None)
        return tuple(sorted(found, key=lambda spec: (spec.owner or "", spec.id)))

    def removed(self, model_id: str, given: Iterable[AdapterSpec]) -> tuple[str, ...]:
        """Return the names of a model's that were removed, and are not to be discovered again."""
        given = tuple(given)
        gone = (change for change in self._changes.values() if change.model == model_id and change.spec is None)
        return tuple(sorted({change.id for change in gone if change.holds_over(_found(given, change.key))}))

    def put(self, model_id: str, spec: AdapterSpec, given: Iterable[AdapterSpec], *, discovered: bool = False) -> None:
        """Add an adapter, or replace the one of that owner and name.

        ``discovered`` is one that nobody has registered: it was asked for, and found where the model's adapters are.

        Raises:
            CatalogueError: it could not be kept; nothing has changed.
        """
        self._keep((model_id, spec.owner, spec.id), spec, given, spec if discovered else None)

    def remove(self, key: AdapterKey, given: Iterable[AdapterSpec]) -> None:
        """Have an adapter no longer. Raises as ``put``."""
        self._keep(key, None, given, None)

    def forget(self, model_id: str) -> None:
        """Undo all that was done to the adapters of a model that is no longer served. Raises as ``put``."""
        self._write({key: change for key, change in self._changes.items() if change.model != model_id})

    def _keep(
        self, key: AdapterKey, spec: AdapterSpec | None, given: Iterable[AdapterSpec], discovered: AdapterSpec | None
    ) -> None:
        over, before = _found(given, key), self._changes.get(key)
        if over is None and discovered is None and before is not None and before.discovered:
            discovered = before.over
        change = AdapterChange(*key, spec, over or discovered, discovered=over is None and discovered is not None)
        changes = self._changes | {key: change}
        if change.spec == change.over and not change.discovered:
            del changes[key]
        self._write(changes)

    def _write(self, changes: dict[AdapterKey, AdapterChange]) -> None:
        if changes != self._changes:
            write_kept(self._file, _CHANGES.dump_json(list(changes.values())))
            self._changes = changes

    def _read(self) -> list[AdapterChange]:
        try:
            return _CHANGES.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValidationError):
            # As with models: serving what is configured is better than nothing, and the file can be mended.
            logger.exception("what was done to adapters at run time can't be read from %s", self._file)
            return []

    def __repr__(self) -> str:
        return f"<AdapterList {len(self._changes)} changed at run time>"


def _found(given: Iterable[AdapterSpec], key: AdapterKey) -> AdapterSpec | None:
    _, owner, adapter_id = key
    return next((spec for spec in given if (spec.owner, spec.id) == (owner, adapter_id)), None)
