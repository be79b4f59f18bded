"""What the guides tell their readers to type."""

import re
from pathlib import Path

from tests.support.service import ROOT

GUIDES = sorted((ROOT / "app" / "guides").glob("*.md"))


def blocks(guide: Path, kind: str) -> list[str]:
    """The code blocks of a kind, in their order."""
    found = re.findall(rf"^( *)```{kind}\n(.*?)^\1```", guide.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def typed() -> list[str]:
    """Every command, guide by guide; those within a text with a model for what stands there in capitals."""
    lines = (line for guide in GUIDES for block in blocks(guide, "sh") for line in block.splitlines() if line)
    inline = (
        found.replace("MODEL", "smollm2-135m-instruct")
        for guide in GUIDES
        for found in re.findall(r"`(flashserve [a-z][^`]*)`", guide.read_text())
    )
    return list(dict.fromkeys(line.partition("#")[0].strip() for line in (*lines, *inline)))
