"""What is remembered beside the disk tier."""

from pathlib import Path

import pytest

from storage.errors import NotKeptError
from storage.kept_json import keep, read_kept

NAME = "kept.json"


def test_entries_are_set_and_taken_out(tmp_path: Path) -> None:
    assert read_kept(tmp_path, NAME) == {}
    for key, value in (("a", "1"), ("b", "2"), ("a", "3"), ("b", None), ("c", None)):
        keep(tmp_path, NAME, key, value)
    assert read_kept(tmp_path, NAME) == {"a": "3"}


def test_what_is_damaged_is_said_and_left(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    for use in (lambda: read_kept(tmp_path, NAME), lambda: keep(tmp_path, NAME, "a", "1")):
        with pytest.raises(NotKeptError, match=r"kept\.json can't be used"):
            use()
    assert (tmp_path / NAME).read_text() == "{"


def test_where_nothing_can_be_written_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotKeptError, match="No such file or directory"):
        keep(tmp_path / "nowhere", NAME, "a", "1")
