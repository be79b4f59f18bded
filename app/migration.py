"""When and how a running stream moves to another replica. Pure; what was measured and the time are arguments.

Covers: what a resume costs, whether moving is quicker than waiting, how many rounds of a move are worth it. Does not
cover: carrying it out (``carrier``), who wants streams moved (replicas that leave or need room, the administrator).

A move goes in rounds, like that of a virtual machine: the target computes what exists while the source goes on; what
came meanwhile is the next round; when a round is no longer shorter than the one before, or short enough, the source is
stopped and the target goes on. The client's gap is one resume of the last round's rest.
"""

from dataclasses import dataclass, field

from deployments.fitted_line import FittedLine

# A rest that is computed this fast is not worth another round.
SHORT_REST_S = 0.02
MAX_ROUNDS = 4


@dataclass(frozen=True)
class ResumeCost:
    """Seconds to the first new token of a resumed sequence: for each token to compute, and for any number of them."""

    line: FittedLine = field(default_factory=lambda: FittedLine(base=0.05, slope=0.001))

    @property
    def per_token_s(self) -> float:
        """What a token costs that has to be computed."""
        return self.line.slope

    def seconds(self, tokens: int) -> float:
        """Estimate how long a resume takes that has so many tokens to compute."""
        return self.line.at(tokens)

    def measured(self, tokens: int, seconds: float) -> "ResumeCost":
        """Return the cost with a measurement taken into account; the latest count most."""
        return ResumeCost(self.line.measured(tokens, seconds))


def is_quicker_elsewhere(tokens: int, left_s: float, elsewhere_s: float | None, cost: ResumeCost) -> bool:
    """Tell whether a stream makes room sooner by moving than by ending where it is.

    ServerlessLLM's rule (Fu et al., OSDI 2024, section 5), seen from the stream: whoever waits for its room has
    already chosen it over loading elsewhere (``deployments.estimate``), so what is left is to wait or to migrate.

    Args:
        tokens: prompt and output, so far: what the target has to compute.
        left_s: how long it will still take where it is.
        elsewhere_s: how soon another replica would serve its model, from the best tier it has; None if there is none.
        cost: of a resume.
    """
    return elsewhere_s is not None and elsewhere_s + cost.seconds(tokens) < left_s


def another_round(rest_tokens: list[int], cost: ResumeCost) -> bool:
    """Tell whether the target should compute once more before the hand-over.

    Args:
        rest_tokens: how much was left to compute at the beginning of each round so far, and now.
        cost: of a resume.
    """
    now = rest_tokens[-1]
    if len(rest_tokens) > MAX_ROUNDS or cost.per_token_s * now <= SHORT_REST_S:
        return False
    return len(rest_tokens) < 2 or now < rest_tokens[-2]  # noqa: PLR2004 - there is a round before
