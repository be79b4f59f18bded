"""Writers that are killed at any moment leave nothing half-written behind, and nothing whole is damaged."""

import os
import random
import signal
from pathlib import Path

import pytest
from snapshot_samples import make_snapshot

from storage.folders import DirectoryFolder
from storage.manifest import Manifest
from storage.promote import CopyPolicy, copy_snapshot
from storage.snapshot import verify
from storage.tier import LocalTier

KILLS = 60
LONGEST_LIFE_S = 0.03
COUNT = 3


def write_and_remove_forever(tiers: list[LocalTier], published: list[tuple[Manifest, Path]]) -> None:
    while True:
        for manifest, directory in published:
            partials = [tier.begin(manifest) for tier in tiers]
            copy_snapshot(manifest, DirectoryFolder(directory), partials, CopyPolicy(threads=2))
            for partial in partials:
                partial.commit()
        for tier in tiers:
            for snapshot_id in tier.ids():
                tier.remove(snapshot_id)


def killed_after(life_s: float, tiers: list[LocalTier], published: list[tuple[Manifest, Path]]) -> None:
    """Life is counted in processor time, so that a busy machine lets it come as far. The signal is not handled."""
    child = os.fork()
    if child == 0:
        try:
            signal.setitimer(signal.ITIMER_PROF, life_s)
            write_and_remove_forever(tiers, published)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGPROF, "it failed before it was killed"


def rests(tier: LocalTier) -> int:
    return sum(path.is_dir() for hidden in (".partial", ".trash") for path in (tier.root / hidden).iterdir())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_whatever_is_there_after_a_kill_is_whole(tmp_path: Path) -> None:
    published = [(make_snapshot(tmp_path / str(n), n, 400_000), tmp_path / str(n)) for n in range(COUNT)]
    tiers = [LocalTier("dram", tmp_path / "dram"), LocalTier("disk", tmp_path / "disk")]
    by_id = {manifest.id: manifest for manifest, _ in published}
    moments = random.Random(1)  # noqa: S311 - no secret
    interrupted = whole = 0
    for _ in range(KILLS):
        killed_after(moments.uniform(0.0001, LONGEST_LIFE_S), tiers, published)
        for tier in tiers:
            interrupted += rests(tier)
            tier.recover()
            assert rests(tier) == 0
            for snapshot_id in tier.ids():
                assert tier.manifest(snapshot_id) == by_id[snapshot_id]
                verify(by_id[snapshot_id], tier.path(snapshot_id))
                whole += 1
    assert interrupted > KILLS / 4, "too few kills came while something was written"
    assert whole > 0
