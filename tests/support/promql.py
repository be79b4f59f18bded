"""What a PromQL expression refers to: metrics, and labels; enough of the language for the project's own expressions."""

import re

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_METRIC = re.compile(r"\b(?:ray|vllm)_[a-zA-Z0-9_:]+")
_SELECTOR = re.compile(r"\{([^{}]*)\}")
_GROUPED = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^()]*)\)")
_LEGEND = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}|\$labels\.(\w+)")


def metrics_in(expression: str) -> set[str]:
    """The names of metrics, without what a histogram adds."""
    return {re.sub("_(bucket|sum|count)$", "", name) for name in _METRIC.findall(_STRING.sub('""', expression))}


def labels_in(expression: str) -> set[str]:
    """The names of labels that are selected or grouped by."""
    plain = _STRING.sub('""', expression)
    selected = {
        part.split("=")[0].split("!")[0].strip() for inner in _SELECTOR.findall(plain) for part in inner.split(",")
    }
    grouped = {label.strip() for inner in _GROUPED.findall(plain) for label in inner.split(",")}
    return (selected | grouped) - {""}


def labels_in_text(text: str) -> set[str]:
    """The names of labels in a legend or an annotation."""
    return {first or second for first, second in _LEGEND.findall(text)}
