"""The OpenAPI document against the service: schemathesis sends what the document allows, and what it doesn't.

Left out are the checks that a body is refused exactly if the document says so: pydantic takes ``"1"`` for a number, and
whether a model exists or a prompt fits is not in the document.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, Service

NOT_IN_THE_DOCUMENT = [negative_data_rejection, positive_data_acceptance]
EXAMPLES = 25
REQUEST_TIMEOUT_S = 120
# A random body may ask for thousands of tokens.
LARGEST = {"max_tokens": 3, "max_completion_tokens": 3, "min_tokens": 3, "n": 2}

GETS = [
    "/v1/models", "/v1/models/{model_id}", "/health", "/admin/models", "/admin/plan", "/admin/status",
    "/admin/tenants", "/admin/tiers",
    "/admin/adapters", "/metrics",
]  # fmt: skip
POSTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/admin/wake",
    "/admin/sleep",
    "/admin/stop",
    "/admin/migrate",
]
ADAPTERS = ["/admin/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]
THINGS = ["/admin/models/{model_id}", "/admin/adapters/{model_id}/{adapter_id}"]
WITH_BODIES = [f"POST {path}" for path in POSTS + ADAPTERS] + [f"PUT {path}" for path in THINGS]
OPERATIONS = [f"GET {path}" for path in GETS] + WITH_BODIES + [f"DELETE {path}" for path in THINGS]

Operations = dict[str, Any]


@pytest.fixture(scope="module")
def operations(service: Service) -> Operations:
    document = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    return {result.ok().label: result.ok() for result in document.get_all_operations()}


def test_the_document_names_every_operation(operations: Operations) -> None:
    assert set(operations) == set(OPERATIONS)


# By hand and not by `schema.parametrize`, which needs the document when tests are collected.
# Nothing wrong can be sent without a body here: a path is any text.
@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, GenerationMode.POSITIVE) for label in OPERATIONS]
    + [(label, GenerationMode.NEGATIVE) for label in WITH_BODIES],
)
def test_the_service_keeps_to_its_document(operations: Operations, label: str, mode: GenerationMode) -> None:
    @given(case=operations[label].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            case.body = _within_reach(case.operation.path, case.body)
        case.call_and_validate(timeout=REQUEST_TIMEOUT_S, excluded_checks=NOT_IN_THE_DOCUMENT)

    check()


def _within_reach(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body for a model that exists, and small."""
    if path in THINGS or path in ADAPTERS:
        return body
    if path.startswith("/admin/"):
        return body | {"model": EMBEDDING_MODEL}
    model = EMBEDDING_MODEL if path == "/v1/embeddings" else CHAT_MODEL
    small = {key: min(body[key], limit) for key, limit in LARGEST.items() if isinstance(body.get(key), int)}
    return {"max_tokens": LARGEST["max_tokens"]} | body | small | {"model": model}
