"""Which snapshot each model uses, beside the disk tier: models of one checkpoint share one, which has one name."""

from pathlib import Path

from storage.kept_json import keep, read_kept

_NAME = "names.json"


def read_names(root: Path) -> dict[str, str]:
    """Return the ids of snapshots by the models that used them last; some may be gone."""
    return read_kept(root, _NAME)


def write_name(root: Path, model_id: str, snapshot_id: str) -> None:
    """Note which snapshot a model uses."""
    keep(root, _NAME, model_id, snapshot_id)
