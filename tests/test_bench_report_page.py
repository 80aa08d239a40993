"""The report's page: the figures that it shows, not only those that it holds."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "benchmarks/page.html"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node runs the page's functions")
def test_the_page_shows_the_figures_that_it_holds():
    show = re.search(r"^const show = .*?^};$", PAGE.read_text(), re.M | re.S)[0]
    shown = {
        (1580, 0): "1580", (28000, 0): "28000", (100, 0): "100", (0, 0): "0", (7, 1): "7", (7.25, 1): "7.3",
        (81.7, 1): "81.7", (0.2, 2): "0.2", (10, 2): "10", (-0.01, 1): "0", (-0.06, 1): "-0.1", (-20, 1): "-20",
        (-0.2, 0): "0", (None, 1): "",
    }  # fmt: skip
    script = f"{show}\nconsole.log(JSON.stringify({json.dumps(list(shown))}.map(pair => show(...pair))))"
    found = subprocess.run([NODE, "-e", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(found) == list(shown.values())
