"""Names: taken once, suggested when mistyped, joined by plug-ins, which may be broken."""

import sys
from typing import Literal

import pytest
from torch import Tensor, nn

from lapbench import doctor
from lapbench.errors import UnknownNameError
from lapbench.registry import Registry, architectures, check_parameters, explainer, explainers, readers

PLUGIN = """
from lapbench.registry import explainer

@explainer("sparkle", version=3, title="Sparkle", paper="Nobody, 1999", signed=True)
def sparkle(model, images, target, *, strength: float = 2.0, mode: str):
    '''Maps that sparkle.'''
    return images[:, 0] * strength
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install modules as a distribution with entry points, and let the registries be filled anew."""

    def install(entry_points, **modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / "lapbench_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lapbench-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(tmp_path)
        for registry in (explainers, architectures, readers):
            registry.names()
            monkeypatch.setattr(registry, "_entries", dict(registry._entries))
            monkeypatch.setattr(registry, "broken", {})
            monkeypatch.setattr(registry, "_loaded", False)

    yield install
    for name in ("sparkling", "broken_plugin", "thief"):
        sys.modules.pop(name, None)


def test_a_plugin_joins_through_its_entry_point(plugin, tmp_path):
    plugin("[lapbench.explainers]\nsparkle = sparkling\n", sparkling=PLUGIN)
    spec = explainers.get("sparkle")

    assert (spec.name, spec.version, spec.title, spec.origin) == ("sparkle", 3, "Sparkle", "sparkling")
    assert spec.needs == {"model"} and spec.signed and not spec.control and spec.native_threshold is None
    assert list(spec.parameters.model_fields) == ["strength", "mode"]
    assert explainers.broken == {} and "sparkle" in explainers.names()
    [found] = [f for f in doctor.examine(tmp_path) if f.what == "explainers"]
    assert found.detail.endswith("1 of them from plug-ins")


def test_a_broken_plugin_is_reported_and_never_fatal(plugin, tmp_path):
    plugin(
        "[lapbench.explainers]\nbad = broken_plugin\ngone = not_there:thing\n"
        "[lapbench.models]\nworse = broken_plugin\n",
        broken_plugin="raise RuntimeError('half installed')",
    )

    assert "grad_cam" in explainers.names() and "resnet18" in architectures.names()
    assert explainers.broken == {
        "bad": "broken_plugin: RuntimeError: half installed",
        "gone": "not_there:thing: ModuleNotFoundError: No module named 'not_there'",
    }
    faults = {f.what: f.detail for f in doctor.examine(tmp_path) if f.state == "fault"}
    assert faults["plug-in bad"] == "broken_plugin: RuntimeError: half installed"
    assert faults["plug-in worse"] == "broken_plugin: RuntimeError: half installed"


def test_a_plugin_cannot_take_a_name_that_is_taken(plugin):
    own = explainers.get("grad_cam")
    plugin("[lapbench.explainers]\nthief = thief\n", thief=PLUGIN.replace('"sparkle"', '"grad_cam"'))

    assert explainers.get("grad_cam") is own
    assert explainers.broken == {"thief": "thief: ValueError: explainer 'grad_cam' is registered twice"}


def test_a_name_is_registered_once():
    explainers.names()
    with pytest.raises(ValueError, match="explainer 'oracle' is registered twice"):

        @explainer("oracle", version=1, title="Another")
        def other(model, images, target):
            return images[:, 0]


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all():
    with pytest.raises(UnknownNameError, match=r"no explainer 'gradcam'; did you mean 'grad_cam'\?"):
        explainers.get("gradcam")
    with pytest.raises(UnknownNameError, match=r"there is no reader 'zzz'; known: .*digits"):
        readers.get("zzz")


def test_a_registry_whose_home_cannot_be_imported_says_so_every_time():
    registry = Registry("thing", "lapbench.no_such_module", "lapbench.things")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            registry.names()


def test_parameters_are_the_keyword_only_arguments(monkeypatch):
    explainers.names()
    monkeypatch.setattr(explainers, "_entries", {})

    @explainer("thing", version=1, title="Thing", needs=("masks", "ids"))
    def thing(
        model: nn.Module, images: Tensor, target: Tensor, *, masks: Tensor, ids: list[str], width: int,
        mode: Literal["a", "b"] = "a",
    ) -> Tensor:  # fmt: skip
        return images[:, 0]

    table = explainers.get("thing").parameters
    assert list(table.model_fields) == ["width", "mode"]
    check_parameters("explainer", "thing", table, {"width": 3})
    with pytest.raises(ValueError, match="explainer 'thing'") as caught:
        check_parameters("explainer", "thing", table, {"mode": "c", "widht": 2})
    assert str(caught.value).split("; ") == [
        "explainer 'thing' needs the parameter 'width'",
        "parameter 'mode' of explainer 'thing': Input should be 'a' or 'b' (found 'c')",
        "explainer 'thing' has no parameter 'widht'",
        "did you mean 'width'?",
    ]


def test_every_entry_knows_where_it_comes_from():
    for registry in (explainers, architectures, readers):
        assert registry.names() and {entry.origin for entry in registry} == {"lapbench"}
        assert all(entry.version >= 1 for entry in registry)
