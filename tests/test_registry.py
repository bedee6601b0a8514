"""Names: taken once, suggested when mistyped, joined by plug-ins, which may be broken."""

import sys
from importlib.metadata import PathDistribution
from typing import Annotated, Literal

import pytest
from torch import Tensor, nn

from lapbench import doctor
from lapbench import registry as registry_module
from lapbench.errors import UnknownNameError
from lapbench.pipeline import listing
from lapbench.registry import (
    YOUNGER,
    Registry,
    architecture,
    architectures,
    check_parameters,
    explainer,
    explainers,
    readers,
)

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
        for registry in (explainers, architectures, readers):
            registry.names()  # before the new modules can be found: what stays must not know them
            own = {entry.name: entry for entry in registry if entry.origin == "lapbench"}
            monkeypatch.setattr(registry, "_entries", own)
            monkeypatch.setattr(registry, "broken", {})
            monkeypatch.setattr(registry, "_loaded", False)
        monkeypatch.syspath_prepend(tmp_path)
        points = PathDistribution(info).entry_points  # and none of what else may be installed here
        for module in (registry_module, listing):
            monkeypatch.setattr(module, "entry_points", lambda group: points.select(group=group))

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


def test_a_plugin_that_fails_halfway_adds_nothing(plugin):
    half = PLUGIN + PLUGIN.replace('"sparkle"', '"grad_cam"').replace("def sparkle", "def thief")
    leaving = PLUGIN.replace('"sparkle"', '"glow"') + "raise SystemExit('no licence')\n"
    plugin(
        "[lapbench.explainers]\nhalf = sparkling\nleaving = broken_plugin\n",
        sparkling=half,
        broken_plugin=leaving,
    )
    own = explainers.get("grad_cam")

    assert not {"sparkle", "glow"} & set(explainers.names()) and own.origin == "lapbench"
    assert explainers.broken == {
        "half": "sparkling: ValueError: explainer 'grad_cam' is registered twice",
        "leaving": "broken_plugin: SystemExit: no licence",
    }
    assert listing.broken("explainers") == [
        f"plug-in {name} is broken, and adds nothing: {why}" for name, why in explainers.broken.items()
    ]
    assert listing.broken("models") == listing.broken("benchmarks") == []


def test_a_module_that_fails_names_its_fault_in_every_registry(plugin):
    both = PLUGIN + "from lapbench import architecture\n@architecture('net')\ndef net(n, c): ...\n1 / 0\n"
    plugin("[lapbench.explainers]\na = sparkling\n[lapbench.models]\nb = sparkling\n", sparkling=both)

    assert "sparkle" not in explainers.names() and "resnet18" in architectures.names()
    why = "sparkling: ZeroDivisionError: division by zero"
    assert (explainers.broken, architectures.broken) == ({"a": why}, {"b": why})
    assert "sparkle" not in explainers.names() and "net" not in architectures.names()


def test_a_stranger_who_is_imported_first_takes_no_name(plugin):
    """In a process of its own lapbench's names may not be there yet."""
    registry = Registry("thing", "lapbench_home", "lapbench.things")
    plugin("", lapbench_home="", sparkling="def sparkle(): ...")
    sys.modules.pop("lapbench_home", None)
    import sparkling

    registry.add(registry_module.Entry("sparkle", 1, sparkling.sparkle, registry_module.Table))
    assert "lapbench_home" in sys.modules
    sys.modules.pop("lapbench_home")


def test_a_function_that_is_defined_again_takes_its_own_place(registered):
    for version in (1, 2):

        @explainer("cell", version=version, title="Of a notebook")
        def cell(model, images, target):
            return images[:, 0]

    assert explainers.get("cell").version == 2


def test_a_card_says_where_an_explainer_comes_from(plugin):
    plugin("[lapbench.explainers]\nsparkle = sparkling\n", sparkling=PLUGIN)
    cards = {headings[0]: dict(lines) for headings, lines in listing.cards()}

    assert cards["sparkle"]["version"] == "3, from lapbench-plugin 1.0"
    assert cards["sparkle"]["measures"] == "Maps that sparkle."
    assert cards["sparkle"]["sign"].startswith("positive speaks for the target")
    assert cards["sparkle"]["paper"] == "Nobody, 1999" and cards["sparkle"]["cost"] == "not stated"
    assert cards["lap"]["version"].startswith("1, from lapbench 0.")
    assert cards["lap"]["threshold"] == "0.5 of its own, and fitted"
    assert cards["random"]["randomness"] == "decided by the parameter seed"
    assert cards["guided_backprop"]["channels"] == "sum" and "not stated" not in str(cards["ones"])


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


def test_a_younger_parameter_names_nothing_until_it_is_used(monkeypatch):
    """What was trained before it joined keeps its name."""
    architectures.names()
    monkeypatch.setattr(architectures, "_entries", {})

    @architecture("net")
    def net(num_classes: int, in_channels: int, *, width: int = 8, cells: Annotated[int, YOUNGER] = 1):
        return nn.Linear(1, 1)

    table = architectures.get("net").parameters
    assert table().model_dump() == table(cells=1).model_dump() == {"width": 8}
    assert table(cells=2).model_dump() == {"width": 8, "cells": 2}
    assert table().cells == 1


def _is_ours(entry):
    return entry.function.__module__.startswith("lapbench.")


def test_every_entry_knows_where_it_comes_from():
    for registry in (explainers, architectures, readers):  # strangers may be installed here, too
        assert {entry.origin for entry in registry if _is_ours(entry)} == {"lapbench"}
        assert all(entry.version >= 1 for entry in registry)
