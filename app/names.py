"""Which model and adapter a request's ``model`` means."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from app.errors import InvalidRequestError, ModelNotFoundError
from deployments.types import AdapterSpec, ModelSpec

# They stand behind colons and slashes in requests, and at the end of paths.
ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
NAME_RULE = "letters, digits, '_', '.' and '-', beginning with a letter or a digit, at most 128"


@dataclass(frozen=True)
class Target:
    """A base model, and the adapter on it if one was asked for, with the tenant whose it is if it is one's own."""

    model_id: str
    adapter_id: str | None = None
    owner: str | None = None

    @property
    def served_name(self) -> str:
        """The one name of it that vLLM's serving classes know."""
        return self.adapter_id or self.model_id


class NameTable:
    """Every name a request may use: ``model``, ``adapter`` and ``model:adapter``.

    An adapter id that occurs on two models, or that is also a model's id, can only be asked for with its model. Where
    ``tenant`` has an adapter of its own, that is meant and not the operator's of the same name; whoever reaches those
    of others calls them ``owner/adapter``. What ``holds`` doesn't allow is not in the table: no answer differs from
    that for what doesn't exist.
    """

    def __init__(
        self, models: Iterable[ModelSpec], holds: Callable[[Target], bool] = lambda _: True, tenant: str = ""
    ) -> None:
        self._targets: dict[str, Target] = {}
        self._ambiguous: dict[str, list[str]] = {}
        # What each of them is called where it stands in a list.
        self.listed: list[tuple[str, Target]] = []
        specs = list(models)
        for spec in specs:
            for name, target in _named(spec, holds, tenant):
                self._targets[f"{spec.id}:{name}"] = target
                self._ambiguous.setdefault(name, []).append(f"{spec.id}:{name}")
                if name == target.adapter_id or target.owner != tenant:
                    self.listed.append((name, target))
        for adapter_id, full_names in list(self._ambiguous.items()):
            if len(full_names) == 1:
                self._targets[adapter_id] = self._targets[full_names[0]]
                del self._ambiguous[adapter_id]
        for spec in specs:
            if holds(Target(spec.id)):
                self._targets[spec.id] = Target(spec.id)
                self._ambiguous.pop(spec.id, None)

    def resolve(self, name: str | None) -> Target:
        """Return what ``name`` stands for.

        Raises:
            InvalidRequestError: no name is given, or it could mean several adapters.
            ModelNotFoundError: nothing is called so.
        """
        if not name:
            raise InvalidRequestError("The field `model` is required.", "model")
        if name in self._ambiguous:
            choices = "`, `".join(self._ambiguous[name])
            raise InvalidRequestError(f"The adapter `{name}` exists on several models: ask for `{choices}`.", "model")
        target = self._targets.get(name)
        if target is None:
            raise ModelNotFoundError(name)
        return target

    def __repr__(self) -> str:
        return f"<NameTable {len(self._targets)} names, {len(self._ambiguous)} ambiguous>"


def _named(spec: ModelSpec, holds: Callable[[Target], bool], tenant: str) -> Iterable[tuple[str, Target]]:
    """Yield the adapters of a model that are reached, each with its name."""
    # The tenant's own come last, and so take the place of the operator's.
    plain: dict[str, Target] = {}
    for adapter in sorted(spec.adapters, key=lambda adapter: adapter.owner is not None):
        target = target_of(spec.id, adapter)
        if not holds(target):
            continue
        if adapter.owner is None or adapter.owner == tenant:
            plain[adapter.id] = target
        if adapter.owner is not None:
            yield f"{adapter.owner}/{adapter.id}", target
    yield from plain.items()


def target_of(model_id: str, adapter: AdapterSpec) -> Target:
    """Return what asks for an adapter."""
    return Target(model_id, adapter.id, adapter.owner)
