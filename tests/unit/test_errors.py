"""Errors cross processes: each comes back from pickling as it went, and says something."""

import inspect
import pickle
from http import HTTPStatus

import pytest

import app.errors
import autoscaler.errors
import deployments.errors
import storage.errors

_VALUES = {"str": "x", "int": 7, "float": 1.5, "bool": True, "str | None": None, "tuple[str, ...]": ("a", "b")}


def _all() -> list[Exception]:
    made = []
    for module in (app.errors, autoscaler.errors, deployments.errors, storage.errors):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and issubclass(kind, Exception):
                if "__init__" not in vars(kind):
                    continue  # the root of a tree, never raised itself
                named = list(inspect.signature(kind).parameters.values())
                made.append(kind(*(_VALUES[inspect.formatannotation(p.annotation)] for p in named)))
    return made


@pytest.mark.parametrize("error", _all(), ids=lambda error: type(error).__name__)
def test_it_survives_pickling(error: Exception) -> None:
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error)


def test_an_unknown_error_is_an_internal_one() -> None:
    assert app.errors.status_of(RuntimeError("secret")) is HTTPStatus.INTERNAL_SERVER_ERROR


def test_a_dead_engine_may_be_asked_again() -> None:
    assert app.errors.status_of(deployments.errors.EngineDiedError("m")) is HTTPStatus.SERVICE_UNAVAILABLE
