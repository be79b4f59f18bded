from collections import Counter
from typing import Any, ClassVar

import pytest

from app import request_metrics
from app.errors import BodyTooLargeError, KeyRefusedError, LimitReachedError, ModelNotFoundError, TooManyWaitingError
from app.refusals import REASONS, refusal_of
from app.request_metrics import RequestMetrics
from app.request_record import LEFT, RequestRecord, begin_record, current_record, noted_id
from deployments.errors import EngineUnavailableError


@pytest.mark.parametrize(
    ("status", "failure", "refusal", "outcome"),
    [
        (200, None, None, "ok"),
        # An attempt was refused, and the next was not.
        (200, None, "engine died", "ok"),
        (200, LEFT, None, "left"),
        (200, LEFT, "engine died", "left"),
        (200, "EngineDiedError", None, "failed"),
        (200, "GracefulHTTPError", "not ready in time", "refused"),
        (0, None, None, "left"),
        (499, "left", None, "left"),
        (400, "VLLMValidationError", None, "wrong"),
        (404, None, None, "wrong"),
        (401, None, "key", "refused"),
        (413, None, "body too large", "refused"),
        (429, None, "limit of tokens", "refused"),
        (503, "GracefulHTTPError", "not ready in time", "refused"),
        (500, None, "ends engines", "failed"),
    ],
)
def test_what_came_of_a_request(status: int, failure: str | None, refusal: str | None, outcome: str) -> None:
    assert RequestRecord(status=status, failure=failure, refusal=refusal).outcome() == outcome


def test_errors_that_turn_away_have_a_reason_and_others_none() -> None:
    found = [
        refusal_of(error)
        for error in (
            LimitReachedError("tokens", 1.0), KeyRefusedError(was_given=True), TooManyWaitingError("m"),
            EngineUnavailableError("m", "it was not awake"), BodyTooLargeError(1),
        )
    ]  # fmt: skip
    assert found == ["limit of tokens", "key", "too many waiting", "not ready in time", "body too large"]
    assert set(found) <= REASONS
    assert refusal_of(ModelNotFoundError("m")) is None
    assert refusal_of(ValueError()) is None


def test_where_no_request_is_noted_nothing_is_kept() -> None:
    current_record().refusal = "key"
    assert current_record().refusal is None
    begin_record(record := RequestRecord())
    assert current_record() is record


def test_ids() -> None:
    assert noted_id("mine") == "mine"
    assert len(noted_id("x" * 1000)) == 128
    assert noted_id(None) != noted_id("") != noted_id(None)


class Recorder:
    """Stands for a Ray metric."""

    kept: ClassVar[Counter[tuple[Any, ...]]] = Counter()

    def __init__(self, name: str, *_: Any) -> None:
        self._name = name

    def inc(self, value: float, labels: dict[str, str]) -> None:
        self.kept[self._name, *labels.values()] += value

    def observe(self, value: float, labels: dict[str, str]) -> None:
        self.inc(value, labels)


def test_a_request_is_counted_once_in_each_metric_it_has_to_do_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_metrics, "Counter", Recorder)
    monkeypatch.setattr(request_metrics, "Histogram", Recorder)
    monkeypatch.setattr(Recorder, "kept", Counter())
    metrics = RequestMetrics()
    record = RequestRecord(operation="chat", tenant="acme", model="m", began_s=10.0, prompt_tokens=7, status=200)
    for count, now_s in ((0, 10.5), (1, 11.0), (2, 12.0)):
        record.tokens_came(count, now_s)
    metrics.finished(record, 14.0)
    metrics.finished(RequestRecord(operation="chat", began_s=10.0, status=401, refusal="key"), 10.1)
    names = {(name.removeprefix("flashserve_"), *labels): value for (name, *labels), value in Recorder.kept.items()}
    assert names == {
        ("requests_total", "m", "chat", "ok"): 1,
        ("e2e_request_latency_seconds", "m", "chat"): 4.0,
        ("time_to_first_token_seconds", "m"): 1.0,
        ("prompt_tokens_total", "m", "acme"): 7,
        ("generation_tokens_total", "m", "acme"): 3,
        ("requests_total", "", "chat", "refused"): 1,
        ("requests_refused_total", "", "key"): 1,
    }
