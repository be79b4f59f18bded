"""The metrics that the code declares and those that README documents, each as (name, type, labels); nothing is run."""

import ast
import re
from dataclasses import dataclass

from tests.support.service import ROOT

PACKAGES = ("app", "deployments", "autoscaler", "storage")
_TYPES = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram"}
_ROW = re.compile(r"^\| `(flashserve_\w+)` \| (counter|gauge|histogram) \| (.*?) \| (.+) \|$")


@dataclass(frozen=True)
class Metric:
    name: str
    type: str
    labels: frozenset[str]
    help: str


def declared() -> list[Metric]:
    """Every metric that is made anywhere in the packages."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            if "ray.util.metrics" in path.read_text():
                found += [_metric(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_metric(node)]
    return found


def documented() -> list[Metric]:
    """The rows of README's table."""
    rows = (_ROW.match(line) for line in (ROOT / "README.md").read_text().splitlines())
    return [Metric(row[1], row[2], frozenset(re.findall(r"`(\w+)`", row[3])), row[4]) for row in rows if row]


def _is_metric(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in _TYPES and bool(node.args)


def _metric(node: ast.Call) -> Metric:
    assert isinstance(node.func, ast.Name)
    values = [ast.literal_eval(argument) for argument in node.args if not isinstance(argument, ast.Name)]
    labels = [value for value in values if isinstance(value, tuple)]
    assert not node.keywords, "what is declared by position can be read here"
    return Metric(values[0], _TYPES[node.func.id], frozenset(labels[0] if labels else ()), values[1])
