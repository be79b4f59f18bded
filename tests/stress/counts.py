"""What a stress run counts, and how an outcome differs from that of the same request undisturbed."""

import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console

from tests.support.conversations import Outcome


@dataclass
class Counts:
    """What was found; the first five must be zero."""

    lost: int = 0
    doubled: int = 0
    changed: int = 0
    failed: int = 0
    hung: int = 0
    left_behind: int = 0
    # With what killed replicas said last, for as long as Ray keeps that.
    left_in_metrics: int = 0
    equal: int = 0
    broken_with_their_gateway: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    scale_downs: int = 0
    moves_asked_for: int = 0
    moves_done: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def good(self) -> bool:
        return not (self.lost or self.doubled or self.changed or self.failed or self.hung or self.left_behind)

    def compare(self, name: str, outcome: Outcome, expected: Outcome) -> None:
        if outcome == expected:
            self.equal += 1
            return
        if outcome.error is not None:
            kind = "failed"
        elif any(len(outcome.written.get(index, "")) < len(text) for index, text in expected.written.items()):
            kind = "lost"
        elif any(len(outcome.written.get(index, "")) > len(text) for index, text in expected.written.items()):
            kind = "doubled"
        else:
            kind = "changed"
        setattr(self, kind, getattr(self, kind) + 1)
        self.faults.append(
            f"{time.strftime('%X')} {name}: {kind}: {outcome.error or outcome.written} instead of {expected.written}"
        )


def print_counts(counts: Counts, console: Console) -> None:
    for name, value in vars(counts).items():
        if name == "faults":
            for fault in value:
                console.print(f"  {fault}", highlight=False, markup=False)
        else:
            console.print(f"{name:>28} {dict(value) if isinstance(value, dict) else value}", highlight=False)
