"""Every command of the guides, as it stands there, beside a service that runs."""

import os
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from app.cli import main
from tests.support.guides import typed
from tests.support.ray_head import free_port
from tests.support.service import CHAT_MODEL, EMBEDDING_MODEL, MODELS, Service
from tests.support.tenants import KeysFile

# An engine that has started from it would keep it; one whose first start built it doesn't.
MAY_BE_REFUSED = {f"flashserve snapshot rm {CHAT_MODEL}": "use"}
REQUESTS = "timestamp_s,model\n" + "".join(f"{at_s},{CHAT_MODEL}\n" for at_s in range(0, 900, 60))
# That of whoever adds a model has what it needs to be served.
ANOTHER = {
    "id": "another",
    "source": str(MODELS / EMBEDDING_MODEL),
    "engine": {"runner": "pooling", "dtype": "float32", "enforce_eager": True},
}


@pytest.fixture
def place(guarded: Service, tmp_path: Path) -> Path:
    """Where whoever reads the guides stands: beside the service's file and its snapshots."""
    document = yaml.safe_load((guarded.directory / "config.yaml").read_text())
    # The service has its own port already, which would be wrong with a file that is to be served.
    document["http_options"]["port"] = free_port()
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "another.yaml").write_text(yaml.safe_dump(ANOTHER))
    (tmp_path / "requests.csv").write_text(REQUESTS)
    (tmp_path / ".flashserve").mkdir()
    (tmp_path / ".flashserve" / "snapshots").symlink_to(guarded.directory / "disk")
    return tmp_path


def test_they_do_what_the_guides_say(
    guarded: Service,
    keys_file: KeysFile,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # In this process, which has imported vLLM already.
    monkeypatch.chdir(place)
    for name, value in {"FLASHSERVE_URL": guarded.url, "FLASHSERVE_API_KEY": keys_file.keys["root"]}.items():
        monkeypatch.setenv(name, value)
    wrong = {}
    for line in typed():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        said = "".join(capfd.readouterr())
        is_refused = status == 1 and MAY_BE_REFUSED.get(line, "Traceback") in said
        if (status and not is_refused) or "Traceback" in said:
            wrong[line] = f"{status}: {said}"
    assert not wrong, os.linesep.join(wrong)
