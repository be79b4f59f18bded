"""A replay on several processors: series don't share devices there, so each process replays some of them.

Covers: dividing, and putting the outcomes together. Does not cover: replaying (``replay``).
"""

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context

from autoscaler.foretold import Foretold
from autoscaler.layers import Profile
from autoscaler.policies import POLICIES, Known
from autoscaler.replay import Outcome, replay, total
from autoscaler.traces import Trace

PARTS_A_JOB = 4
"""Series differ by much in what they take: whoever is done early takes another part."""


@dataclass(frozen=True)
class Work:
    """What is replayed, by which of ``POLICIES``; see ``replay``. It crosses process borders."""

    policy: str
    setting: float
    known: Known
    profile: Profile
    slots: int
    begin_s: float

    def replay(self, trace: Trace, progress: Callable[[int], None] | None = None, end_s: float = math.inf) -> Outcome:
        """Replay in this process."""
        policy_of = POLICIES[self.policy].make(self.setting, self.known)
        return replay(trace, policy_of, self.profile, self.slots, begin_s=self.begin_s, end_s=end_s, progress=progress)


def replay_on(jobs: int, work: Work, trace: Trace, progress: Callable[[int], None] | None = None) -> Outcome:
    """Replay on so many processors; ``progress`` is told how many more requests were replayed."""
    if jobs == 1:
        return work.replay(trace, progress)
    # All end when the last series does, whoever replays it.
    end_s = math.nextafter(max(float(each.at_s[-1]) for each in trace.values()), math.inf)
    number = min(len(trace), jobs * PARTS_A_JOB)
    parts = [{name: trace[name] for name in list(trace)[first::number]} for first in range(number)]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        under_way = {pool.submit(_part_of(work, part).replay, part, end_s=end_s): part for part in parts}
        for done in as_completed(under_way):
            if progress is not None:
                progress(sum(len(each.at_s) for each in under_way[done].values()))
        return total(done.result() for done in under_way)


def _part_of(work: Work, part: Trace) -> Work:
    """Return the work with what was foretold of these series alone: of two thousand it is much."""
    foretold = work.known.foretold
    rows = [foretold.names.index(name) for name in part]
    rates = {who: said[rows] for who, said in foretold.rates.items()}
    return replace(work, known=replace(work.known, foretold=Foretold(tuple(part), foretold.step_s, rates)))
