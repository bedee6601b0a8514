"""The contract from the command line's point of view: names, modules of the current folder, parameters."""

import sys

import pytest

from lapbench.errors import DefinitionError, ExplainerError, NotApplicableError, UnknownNameError
from lapbench.explain.checks import CHECKS
from lapbench.pipeline.checking import check_named, find_explainer
from lapbench.registry import explainers

MINE = """
import torch
from captum.attr import Saliency
from lapbench import explainer, from_attribute

def gradient(model, images, target):
    images.requires_grad_()
    score = model(images).gather(1, target[:, None]).sum()
    return torch.autograd.grad(score, images)[0].sum(1)

@explainer("flat", version=1, title="Flat", class_agnostic=True, control=True)
def flat(model, images, target, *, height: float = 1.0):
    return torch.full((len(images), 4, 4), height)

def brightness(model, images, target):
    return images.sum(1)

class Holder:
    saliency = staticmethod(from_attribute(Saliency, reduce="mean"))

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, registered):
    """An empty folder to work in, with a module in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "half.py").write_text("import not_installed_anywhere")
    (tmp_path / "leaving.py").write_text("raise SystemExit('no licence')")
    yield tmp_path
    for name in ("mine", "half", "leaving"):
        sys.modules.pop(name, None)


def faults(name, **options):
    return {
        check.name: check.fault for check in check_named(name, size=32, batch=2, **options) if check.fault
    }


@pytest.mark.parametrize(
    "name", ["mine:gradient", "mine:flat", "mine:Holder.saliency", "captum.attr:Saliency"]
)
def test_what_can_be_imported_is_checked(folder, name):
    path = list(sys.path)

    assert [check.name for check in check_named(name, size=32, batch=2)] == list(CHECKS)
    assert faults(name) == {} and sys.path == path


def test_what_breaks_the_contract_is_found(folder):
    assert faults("mine:brightness").keys() == {"depends on target", "depends on weights"}


def test_what_was_registered_keeps_what_it_declares(folder):
    faults("mine:flat")
    assert find_explainer("mine:flat") is explainers.get("flat") is find_explainer("flat")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lap_all", {}),
        ("gradient", {"layer": "lap"}),
        ("grad_cam", {"layer": "lip"}),
        ("deeplift", {"layer": "bla"}),
        ("guided_backprop", {"layer": "antehoc"}),
        ("lap", {"parameters": ["layer=1", "concept=rest"], "architecture": "squeezenet1_1"}),
        ("oracle", {}),
        ("random", {"parameters": ["seed=3"]}),
    ],
)
def test_registered_explainers_pass_on_the_built_in_network(name, options):
    found = faults(name, **options)
    assert found.keys() <= {"depends on target"}  # of one concept head, which was asked for
    assert not found or "concept=rest" in options.get("parameters", ())


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("gradcam", {}, UnknownNameError, "there is no explainer 'gradcam'; did you mean 'grad_cam'"),
        ("mine:gradeint", {}, UnknownNameError, "no name in mine 'gradeint'; did you mean 'gradient'"),
        ("mine:Holder.x", {}, UnknownNameError, "no name in mine 'x'"),
        ("nobody:x", {}, ExplainerError, "nobody:x: 'nobody' cannot be imported: ModuleNotFoundError"),
        ("half:x", {}, ExplainerError, "No module named 'not_installed_anywhere'"),
        ("leaving:x", {}, ExplainerError, "'leaving' cannot be imported: SystemExit: no licence"),
        (":x", {}, ExplainerError, ":x: '' cannot be imported: ValueError"),
        ("mine:", {}, UnknownNameError, "no name in mine ''"),
        ("mine:number", {}, ExplainerError, "an explainer is a function .* found int"),
        ("mine:flat", {"parameters": ["heigth=2"]}, DefinitionError, "did you mean 'height'"),
        ("mine:flat", {"parameters": ["height=tall"]}, DefinitionError, r"valid number.* \(found 'tall'\)"),
        ("mine:flat", {"parameters": ["height"]}, DefinitionError, "parameter 'height': wanted key=value"),
        ("gradient", {"architecture": "resnet81"}, UnknownNameError, "did you mean 'resnet18'"),
        (
            "gradient",
            {"architecture": "inception_v3"},
            DefinitionError,
            "inception_v3 cannot take images of 32×32",
        ),
        ("lap", {"parameters": ["concept=none"]}, ExplainerError, "no concept 'none'"),
    ],
)
def test_faults_of_the_user_are_named(folder, name, options, error, message):
    if name == "lap":
        assert message in faults(name, **options)["shape"]
        return
    with pytest.raises(error, match=message):
        faults(name, **options)


def test_what_does_not_apply_is_no_fault(folder):
    (folder / "mine.py").write_text(
        MINE + "\nfrom lapbench.explain.ante_hoc import lap\ndef mine(m, i, t): return lap(m, i, t)\n"
    )
    with pytest.raises(NotApplicableError, match="has no LAP layers"):
        faults("mine:mine")
    assert faults("mine:mine", layer="lap") == {}
