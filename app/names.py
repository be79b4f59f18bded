"""Which model and adapter a request's ``model`` means."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from app.errors import InvalidRequestError, ModelNotFoundError
from deployments.types import ModelSpec


@dataclass(frozen=True)
class Target:
    """A base model, and the adapter on it if one was asked for."""

    model_id: str
    adapter_id: str | None = None

    @property
    def served_name(self) -> str:
        """The one name of it that vLLM's serving classes know."""
        return self.adapter_id or self.model_id


class NameTable:
    """Every name a request may use: ``model``, ``adapter`` and ``model:adapter``.

    An adapter id that occurs on two models, or that is also a model's id, can only be asked for with its model.
    What ``holds`` doesn't allow is not in it: no answer differs from that for what doesn't exist.
    """

    def __init__(self, models: Iterable[ModelSpec], holds: Callable[[Target], bool] = lambda _: True) -> None:
        self._targets: dict[str, Target] = {}
        self._ambiguous: dict[str, list[str]] = {}
        specs = list(models)
        for spec in specs:
            for adapter in spec.adapters:
                target = Target(spec.id, adapter.id)
                if not holds(target):
                    continue
                self._targets[f"{spec.id}:{adapter.id}"] = target
                self._ambiguous.setdefault(adapter.id, []).append(f"{spec.id}:{adapter.id}")
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
