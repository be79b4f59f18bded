"""The guides: every command in them is one, every section of configuration can be read, every name is known."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from app.cli import cli
from app.config import AppConfig, parse_config
from tests.support.declared_metrics import documented
from tests.support.guides import GUIDES, blocks, typed
from tests.support.service import ROOT

SECTIONS = ("models", "pools", "gateway", "admission", "storage", "autoscaling", "security", "tracing")
# Files that commands in the guides name; those that have to be there are made.
FILES = {"another.yaml": "id: another", "requests.csv": "1", "serve_config.yaml": "{}"}


def test_there_is_one_for_each_and_the_readme_leads_to_them() -> None:
    assert [guide.stem for guide in GUIDES] == ["operating", "security", "troubleshooting", "tuning"]
    readme = (ROOT / "README.md").read_text()
    assert all(f"app/guides/{guide.name}" in readme for guide in GUIDES)
    assert len(typed()) > 20


@pytest.mark.parametrize("text", [ROOT / "README.md", *GUIDES], ids=lambda text: text.stem)
def test_every_picture_is_there(text: Path) -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text.read_text())
    assert shown
    assert all((text.parent / picture).is_file() for picture in shown)


@pytest.mark.parametrize("line", typed())
def test_every_command_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    program, *arguments = shlex.split(line, comments=True)
    assert program == "flashserve"
    command: Any = get_command(cli)
    context = command.make_context(program, list(arguments))
    # As it would be run, group by group, but for the last step.
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, arguments)
        context = command.make_context(name, list(arguments), parent=context)
    assert command.callback is not None


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_section_of_configuration_is_right(guide: Path) -> None:
    for block in blocks(guide, "yaml"):
        args = yaml.safe_load(block)
        assert args.keys() <= set(SECTIONS)
        parse_config({"models": [{"id": "m", "source": "x"}]} | args)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_name_is_known(guide: Path) -> None:
    text = guide.read_text()
    assert set(re.findall(r"\bflashserve_[a-z_]+", text)) <= {metric.name for metric in documented()}
    schema = AppConfig.model_json_schema()
    for path in set(re.findall(rf"`((?:{'|'.join(SECTIONS)})(?:\[\])?\.[\w.\[\]]+)`", text)):
        node: Any = schema
        for part in path.replace("[]", "").split("."):
            node = _resolved(node, schema)["properties"][part]


def _resolved(node: Any, schema: Any) -> Any:
    """Follow references, lists and optional sections to what has properties."""
    while "properties" not in node:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        elif "items" in node:
            node = node["items"]
        else:
            node = next(each for each in node.get("anyOf", node.get("allOf", [])) if each.get("type") != "null")
    return node


def test_they_are_part_of_the_package() -> None:
    assert '"guides/*"' in (ROOT / "pyproject.toml").read_text()
