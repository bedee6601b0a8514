from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    monkeypatch.delenv("LAPBENCH_DATA", raising=False)


@pytest.fixture
def real():
    """The folder of a real data set by name; the test is skipped where it is absent."""

    def find(name):
        if not (REAL / name).is_dir():
            pytest.skip(f"the real data set {name} is not in {REAL}")
        return REAL / name

    return find


@pytest.fixture
def write_image():
    """Write an image of that height and width; pixel (i, j) is i·16 + j, so that swapped axes show."""

    def write(path, height, width):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (np.arange(height)[:, None] * 16 + np.arange(width)) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return path

    return write
