"""Which node forks an engine ahead of its replica, and what nodes are told; nodes that don't answer are passed over."""

from typing import Any

from deployments.ahead_orders import AheadOrders, chosen


def test_the_node_that_has_one_already_and_else_the_one_with_fewest() -> None:
    known = {"a": {"m": False, "n": True, "o": False}, "b": {"m": False, "n": False, "p": False}}
    assert chosen(["n"], known) == {"n": "a"}
    assert chosen(["m"], known) == {"m": "b"}
    assert chosen(["o"], known) == {"o": "a"}
    assert chosen(["unknown"], known) == {}
    # What was chosen counts for the next ones.
    assert chosen(["m", "p"], {"a": {"m": False}, "b": {"m": False, "p": False}}) == {"m": "a", "p": "b"}


class Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


class StubNode:
    """As the handle of a node's actor."""

    def __init__(self, known: dict[str, bool] | None) -> None:
        self.forked: list[str] = []
        self._known = known
        self.engines_ahead = Method(self._engines_ahead)
        self.fork_ahead = Method(self._fork_ahead)

    async def _engines_ahead(self) -> dict[str, bool]:
        if self._known is None:
            raise ConnectionError("it has just ended")
        return self._known

    async def _fork_ahead(self, model_id: str) -> bool:
        self.forked.append(model_id)
        return True


async def test_nodes_are_told() -> None:
    nodes = {"a": StubNode(None), "b": StubNode({"m": False, "n": False})}
    await AheadOrders("forecaster", nodes).order(["m", "x"])
    assert nodes["a"].forked == []
    assert nodes["b"].forked == ["m"]
