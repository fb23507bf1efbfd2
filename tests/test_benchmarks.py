"""The benchmarks run, and draw pictures that say what they show to those who cannot see them."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from blocks import ROOT

pytestmark = pytest.mark.slow

SVG = "{http://www.w3.org/2000/svg}"


def test_growth_is_measured_and_drawn(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'growth.db'}"
    options = ["--scale", "--versions", "1", "--rows", "1", "--markdown", "--pictures", str(tmp_path), url]
    command = [sys.executable, "-m", "tests.benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| one row as of an instant | 1.00 |" in done.stdout
    pictures = {file.name: ElementTree.fromstring(file.read_text()) for file in tmp_path.glob("*.svg")}
    assert {"sqlite-one-row-as-of-an-instant.svg", "sqlite-bytes-of-a-change.svg"} < pictures.keys()
    for picture in pictures.values():
        assert "1.00 for 1,000 versions" in picture.findtext(f"{SVG}desc", "")
        assert picture.find(f".//{SVG}script") is None
