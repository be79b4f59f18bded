"""The traces that `autoscale.py` replays: all of a directory that hold arrivals, thinned by client to what fits.

Covers: choosing and thinning. Does not cover: reading (`autoscaler.traces`).
"""

from collections.abc import Iterator
from pathlib import Path

from autoscaler.errors import TraceError
from autoscaler.traces import Arrivals, Trace, read_trace

SAMPLES = Path(__file__).parents[1] / "data" / "traces"
NO_ARRIVALS = ("_meta", "_usage", "_latency", "_totals", "_client_tokens")
"""Files with such names describe others, or have no times."""
MOST_OF_SERIES, MOST_REQUESTS = 5_000, 12_000
MOST_OF_ONE = 250_000
"""Series that long are read only where there are no others."""


def traces_in(directory: Path) -> Iterator[tuple[str, Trace, str]]:
    """Gives name, trace, and a remark on what was left out."""
    for path in sorted([*directory.glob("*.csv"), *directory.glob("*.csv.gz")]):
        name = path.name.split(".")[0]
        if name.endswith(NO_ARRIVALS):
            continue
        try:
            whole = _read(path)
        except TraceError as error:
            print(f"{path.name} is left out: {error}")
            continue
        trace, every, of_one = thinned(whole)
        kept, there = (sum(len(each.at_s) for each in some.values()) for some in (trace, whole))
        remark = f"{len(trace)} of {len(whole)} series, {kept} of {there} requests"
        if of_one > 1:
            remark += f", every {of_one}. request of its one series"
        elif every > 1:
            remark += f", every {every}. of the series with at most {MOST_OF_SERIES}"
        yield name, trace, remark


def _read(path: Path) -> Trace:
    try:
        return read_trace(path, limit=MOST_OF_SERIES)
    except TraceError:
        return read_trace(path, limit=MOST_OF_ONE)


def thinned(whole: Trace) -> tuple[Trace, int, int]:
    """Returns every n-th series, whole, and n; of a single series that is too long every m-th request, and m.

    Series with more than MOST_OF_SERIES requests are left out where there are others: they are awake all the time.
    """
    names = sorted(whole)
    every = 1
    while sum(len(whole[name].at_s) for name in names[::every]) > MOST_REQUESTS and every < len(names):
        every += 1
    if len(names[::every]) > 1 or len(whole) > 1:
        return {name: whole[name] for name in names[::every]}, every, 1
    (name,) = names
    of_one = -(-len(whole[name].at_s) // MOST_REQUESTS)
    return {name: Arrivals(whole[name].at_s[::of_one], whole[name].service_s[::of_one])}, 1, of_one
