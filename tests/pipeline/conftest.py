import shutil

import pytest

from lapbench.registry import explainer, explainers
from pipeline import tiny


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    monkeypatch.delenv("LAPBENCH_DATA", raising=False)
    monkeypatch.delenv("LAPBENCH_CACHE", raising=False)


@pytest.fixture
def trained(finished, tmp_path):
    """A folder with the definition, and a cache that holds the trained weights alone."""
    tiny.write_definition(tmp_path)
    shutil.copytree(finished.cache / "weights", tmp_path / "cache" / "weights")
    return tmp_path


@pytest.fixture
def copied(finished, tmp_path):
    """A folder with the definition, and a copy of the whole finished cache."""
    tiny.write_definition(tmp_path)
    shutil.copytree(finished.cache, tmp_path / "cache")
    return tmp_path


@pytest.fixture
def temporary():
    """Register explainers for one test: temporary(name, function, **what the decorator takes)."""
    names = []

    def register(name, function, **settings):
        explainers.names()  # lapbench's own come first
        explainer(name, version=1, title=name.title(), **settings)(function)
        names.append(name)

    yield register
    for name in names:
        del explainers._entries[name]
