"""The template of a plug-in: installed as a user installs it, found, listed, checked, and run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parent / "template_plugin"
COMMANDS = """
import sys
from lapbench.cli import app

for line in sys.argv[1:]:
    print("$", line, flush=True)
    print("exit", app(line.split(), standalone_mode=False) or 0, flush=True)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The template in a folder of its own, installed by pip without the network."""
    folder = tmp_path_factory.mktemp("site")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    line = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder), str(TEMPLATE)]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_template_is_found_and_used(installed, tmp_path):
    lines = [
        "ls explainers -v",
        "check explainer gradient_energy --architecture two_layers --size 32 -p power=1.0",
        f"run {TEMPLATE / 'squares.toml'} --cache cache",
    ]
    result = subprocess.run(
        [sys.executable, "-c", COMMANDS, *lines],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    listed, checked, ran = result.stdout.split("$ ")[1:]

    assert result.returncode == 0, result.stderr
    assert all(shown.rstrip().endswith("exit 0") for shown in (listed, checked, ran)), result.stdout
    card = listed.split("\n\n")[-2]
    assert card.startswith("gradient_energy  Gradient energy") and "lapbench-template 0.3.0" in card
    assert "fault" not in checked and "ok  depends on weights" in checked
    assert "two layers" in ran and "Gradient energy" in ran and "1.000 [1.000, 1.000]" in ran
