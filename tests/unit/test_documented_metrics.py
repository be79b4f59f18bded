"""README's table of metrics against the code, without running either."""

from typing import get_args

import pytest

from app.refusals import REASONS
from deployments.device_time import USES
from storage.peer import Failure
from tests.support.declared_metrics import Metric, declared, documented

DOCUMENTED = {metric.name: metric for metric in documented()}


def test_every_metric_of_the_code_is_documented_and_no_other() -> None:
    assert sorted(metric.name for metric in declared()) == sorted(metric.name for metric in documented())


@pytest.mark.parametrize("metric", declared(), ids=lambda metric: metric.name)
def test_the_table_says_what_the_code_does(metric: Metric) -> None:
    told = DOCUMENTED[metric.name]
    assert (told.type, told.labels) == (metric.type, metric.labels)
    assert told.help.startswith(metric.help)


@pytest.mark.parametrize("metric", declared(), ids=lambda metric: metric.name)
def test_names_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert metric.type != "histogram" or metric.name.endswith(("_seconds", "_bytes"))
    assert not metric.name.endswith(("_count", "_sum", "_bucket", "_info"))
    # Unbounded, whoever makes them up.
    assert not metric.labels & {"request_id", "user", "url", "prompt", "adapter", "snapshot", "replica"}


def test_values_of_labels_are_documented() -> None:
    assert {
        each for each in REASONS if f"`{each}`" not in DOCUMENTED["flashserve_requests_refused_total"].help
    } == set()
    assert {use for use in USES if f"`{use}`" not in DOCUMENTED["flashserve_device_seconds_total"].help} == set()
    failures = set(get_args(Failure))
    assert {each for each in failures if f"`{each}`" not in DOCUMENTED["flashserve_peers_failed_total"].help} == set()
