"""``flashserve snapshot``: what a user types and reads."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import serve_s3
from snapshot_samples import make_snapshot
from typer.testing import CliRunner

from app.cli import main
from app.snapshot_cli import cli
from storage.errors import SnapshotBusyError
from storage.lease import Lease
from storage.manifest import MANIFEST_NAME, Manifest
from storage.names import write_name
from storage.pins import read_pins
from storage.tier import LocalTier


@pytest.fixture
def tier(tmp_path: Path) -> LocalTier:
    return LocalTier("disk", tmp_path / "tier")


@pytest.fixture
def manifest(tmp_path: Path, tier: LocalTier) -> Manifest:
    manifest = make_snapshot(tmp_path / "made", 7)
    (tmp_path / "made").rename(tier.path(manifest.id))
    return manifest


def said(tier: LocalTier, *arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli, [*arguments, "--dir", str(tier.root)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["flashserve", "snapshot", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    return capsys.readouterr().err.strip()


def test_what_is_there_is_listed(tier: LocalTier, manifest: Manifest) -> None:
    line = next(line for line in said(tier, "ls").splitlines() if "model-7" in line)
    assert all(word in line for word in (manifest.id[:12], "4.2 kB", "bfloat16", "cpu, vLLM 0.29.0, 1 ranks"))


def test_one_that_several_models_use_goes_by_the_name_of_each(tier: LocalTier, manifest: Manifest) -> None:
    write_name(tier.root, "another", manifest.id)
    write_name(tier.root, "gone", "0" * 64)
    assert "another, model-7" in said(tier, "ls")
    said(tier, "pin", "another", "disk")
    assert read_pins(tier.root) == {manifest.id: "disk"}
    said(tier, "rm", "another")
    assert tier.ids() == []


def test_whole_ones_verify_and_damaged_ones_do_not(
    tier: LocalTier, manifest: Manifest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ok model-7" in said(tier, "verify")
    assert "ok model-7" in said(tier, "verify", manifest.id[:6])
    os.truncate(tier.path(manifest.id) / "config.json", 0)
    message = failure(capsys, monkeypatch, "verify", "model-7", "--dir", str(tier.root))
    assert message.endswith("config.json has 0 bytes instead of 2")
    assert message.startswith("flashserve: the snapshot at ")


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("{")])
def test_one_that_can_not_be_read_hides_no_other_and_can_be_removed(
    tier: LocalTier, manifest: Manifest, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    other = make_snapshot(tmp_path / "other", 8)
    (tmp_path / "other").rename(tier.path(other.id))
    damage(tier.path(other.id) / MANIFEST_NAME)
    listed = said(tier, "ls")
    assert "model-7" in listed
    assert f"flashserve snapshot rm {other.id}" in listed.replace("\n", "")
    lease = Lease(tier.root, other.id, "an engine")
    with pytest.raises(SnapshotBusyError):
        said(tier, "rm", other.id)
    lease.release()
    said(tier, "rm", other.id)
    assert tier.ids() == [manifest.id]
    assert "rm" not in said(tier, "ls")


def test_published_ones_can_be_fetched(
    tier: LocalTier, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with serve_s3() as server:
        for number, place in enumerate((str(tmp_path / "shelf"), "s3://bucket/models/seven")):
            assert "published model-7" in said(tier, "publish", "model-7", place, "--s3-endpoint-url", server.url)
            other = LocalTier("disk", tmp_path / f"other-{number}")
            for _ in range(2):
                assert "model-7" in said(other, "fetch", place, "--s3-endpoint-url", server.url)
            assert other.ids() == [manifest.id]
            assert "ok model-7" in said(other, "verify")


def test_removal_and_what_is_not_there(
    tier: LocalTier, manifest: Manifest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "removed model-7" in said(tier, "rm", manifest.id)
    assert tier.ids() == []
    message = failure(capsys, monkeypatch, "rm", "model-7", "--dir", str(tier.root))
    assert message == "flashserve: there is no snapshot 'model-7' here"
    message = failure(capsys, monkeypatch, "fetch", str(tier.root / "nowhere"), "--dir", str(tier.root))
    assert "nowhere: there is no such directory" in message
    message = failure(capsys, monkeypatch, "fetch", "gs://bucket", "--dir", str(tier.root))
    assert (
        message
        == "flashserve: source 'gs://bucket' can't be used: 'gs://' is not understood; s3://, hf:// and paths are"
    )
