from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from report import Report, Result, Target
from results_plot import MET, MISSED, PLAIN, write_picture

MACHINE = {"cpu": "a processor", "cores": 2, "memory_bytes": 8 * 2**30, "os": "an OS", "gpu": "no GPU"}


@pytest.mark.parametrize(("target", "colour"), [(None, PLAIN), (Target(2.0, "min"), MET), (Target(2.0, "max"), MISSED)])
def test_a_bar_tells_whether_its_target_was_met(target: Target | None, colour: str, tmp_path: Path) -> None:
    results = (Result("one", 3.0, "ms", (2.0, 3.0, 4.0), target), Result("other", 0.5, "ratio", ()))
    picture = write_picture(Report("example", MACHINE, "abc1234", results), tmp_path)
    assert picture == tmp_path / "example.png"
    pixels = matplotlib.image.imread(picture)[..., :3]
    shown = {each for each in (MET, MISSED) if np.isclose(pixels, to_rgb(each), atol=1 / 255).all(axis=-1).any()}
    assert shown == {colour} - {PLAIN}
