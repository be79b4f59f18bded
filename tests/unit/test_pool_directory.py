"""A pool's directory is there as long as its owner, however that ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import pool_directory
from deployments.pool_directory import PoolDirectory
from tests.support.service import ROOT

OWNER = """
import sys, time
from pathlib import Path
from deployments import pool_directory
pool_directory._PARENT = Path(sys.argv[1])
held = pool_directory.PoolDirectory()
print(held.path, flush=True)
time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pool_directory, "_PARENT", tmp_path)
    return tmp_path


def test_two_live_beside_each_other_until_they_are_removed() -> None:
    one = PoolDirectory()
    (one.path / "zygote").touch()
    other = PoolDirectory()
    assert one.path.exists()
    one.remove()
    one.remove()
    assert not one.path.exists()
    assert other.path.exists()
    other.remove()


def test_what_a_killed_owner_has_left_goes_with_the_next(parent: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(parent)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        try:
            assert owner.stdout is not None
            left = Path(owner.stdout.readline().strip())
            PoolDirectory().remove()
            assert left.exists()
        finally:
            owner.kill()
    PoolDirectory().remove()
    assert not left.exists()


def test_one_that_is_not_locked_yet_is_let_be(parent: Path) -> None:
    begun = parent / "fs-pool-begun"
    begun.mkdir()
    (begun / "owner.new").touch()
    PoolDirectory().remove()
    assert begun.exists()


def test_a_link_is_hidden_by_the_pool_that_it_leads_to(parent: Path) -> None:
    link, one, other = parent / "links" / "node", PoolDirectory(), PoolDirectory()
    one.show(link)
    other.show(link)
    one.hide(link)
    assert link.readlink() == other.path
    other.hide(link)
    assert not link.is_symlink()
    for each in (one, other):
        each.remove()
