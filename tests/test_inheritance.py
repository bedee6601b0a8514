"""Definitions that say only what is their own."""

import re

import pytest
from pipeline import tiny

from lapbench.benchmark import load_benchmark
from lapbench.errors import DefinitionError, UnknownNameError

OWN = """
extends = "tiny.toml"
name = "own"
title = "Own"
"""
"""The definition that says no more is the tiny one under another name."""


@pytest.fixture
def base(tmp_path):
    return load_benchmark(tiny.write_definition(tmp_path).rename(tmp_path / "tiny.toml"))


def own(folder, text):
    path = folder / "own.toml"
    path.write_text(text)
    return load_benchmark(path)


def fault(folder, text):
    with pytest.raises(DefinitionError) as caught:
        own(folder, text)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def line_of(text, part):
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


def test_what_is_not_said_is_as_in_the_base(base, tmp_path):
    assert own(tmp_path, OWN) == base.model_copy(update={"name": "own", "title": "Own"})


def test_tables_are_joined_models_by_name_and_lists_replaced(base, tmp_path):
    found = own(
        tmp_path,
        OWN + "[data]\nfit_limit = 3\n"
        '[[models]]\nname = "plain"\nseeds = [4, 5]\n[models.recipe]\nepochs = 7\n'
        '[[models]]\nname = "third"\narchitecture = "resnet18"\n[models.recipe]\nepochs = 1\n'
        '[[explainers]]\nname = "random"\n',
    )
    first, plain, third = found.models

    assert found.data == base.data.model_copy(update={"fit_limit": 3})
    assert first == base.models[0]
    recipe = base.models[1].recipe.model_copy(update={"epochs": 7})
    assert plain == base.models[1].model_copy(update={"seeds": (4, 5), "recipe": recipe})
    assert third.name == "third"
    assert [explainer.name for explainer in found.explainers] == ["random"]
    assert found.protocol == base.protocol


def test_every_model_gives_what_a_model_does_not_say_itself(base, tmp_path):
    text = OWN + "[every_model]\nseeds = [8]\n[every_model.recipe]\nepochs = 9\nbatch_size = 3\n"
    models = own(tmp_path, text).models

    assert [model.seeds for model in models] == [
        model.seeds if "seeds" in model.model_fields_set else (8,) for model in base.models
    ]
    for model, before in zip(models, base.models, strict=True):
        said = before.recipe.model_fields_set
        assert model.recipe.epochs == (before.recipe.epochs if "epochs" in said else 9)
        assert model.recipe.batch_size == (before.recipe.batch_size if "batch_size" in said else 3)


def test_own_words_for_every_model_stand_over_those_of_the_base(base, tmp_path):
    (tmp_path / "tiny.toml").write_text(
        (tmp_path / "tiny.toml").read_text() + "[every_model.recipe]\nweight_decay = 0.5\n"
    )
    ours, theirs = (
        [model.recipe for model in own(tmp_path, OWN + more).models]
        for more in ("[every_model.recipe]\nweight_decay = 0.25\n", "")
    )
    assert [recipe.weight_decay for recipe in ours] == [0.25] * len(ours)
    assert [recipe.weight_decay for recipe in theirs] == [0.5] * len(theirs)


def test_a_shipped_definition_is_a_base_by_its_name(tmp_path):
    found, shipped = own(tmp_path, OWN.replace("tiny.toml", "quickstart")), load_benchmark("quickstart")
    assert found == shipped.model_copy(update={"name": "own", "title": "Own"})


def test_bases_have_bases(base, tmp_path):
    (tmp_path / "middle.toml").write_text(OWN + "[protocol]\nresamples = 9\n")
    text = OWN.replace("tiny.toml", "middle.toml") + "[data]\nfit_limit = 3\n"
    found = own(tmp_path, text)
    assert (found.protocol.resamples, found.data.fit_limit, found.models) == (9, 3, base.models)


@pytest.mark.parametrize(
    ("more", "where", "said"),
    [
        ("[data]\nfit_limt = 3\n", "fit_limt", r"data\.fit_limt: unknown field; did you mean 'fit_limit'\?"),
        (
            '[[models]]\nname = "plain"\n[models.recipe]\nepochs = -1\n',
            "epochs",
            r"models\.2\.recipe\.epochs: .*greater than or equal to 0 \(found -1\)",
        ),
        ('[every_model]\nseed = 3\n', "seed = ", r"models\.1\.seed: unknown field; did you mean 'seeds'\?"),
    ],
)  # fmt: skip
def test_a_fault_is_where_it_was_written(base, tmp_path, more, where, said):
    first, *faults = fault(tmp_path, OWN + more)
    assert first.startswith("own.toml: ")
    assert re.fullmatch(f"  own.toml:{line_of(OWN + more, where)}: {said}", faults[0])


def test_a_fault_of_the_base_names_the_base(base, tmp_path):
    text = (tmp_path / "tiny.toml").read_text().replace("resamples", "resample")
    (tmp_path / "tiny.toml").write_text(text)
    number = line_of(text, "resample")
    assert f"  tiny.toml:{number}: protocol.resample: unknown field" in fault(tmp_path, OWN)[1]


def test_what_is_never_inherited_is_missing(base, tmp_path):
    assert fault(tmp_path, 'extends = "tiny.toml"\n')[1:] == [
        "  own.toml:1: name: this field is missing",
        "  own.toml:1: title: this field is missing",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.replace('"tiny.toml"', "3"), r"own.toml:2: extends: a definition's name .* \(found 3\)"),
        (OWN.replace("tiny.toml", "none.toml"), r"none.toml: cannot be read"),
        (OWN.replace("tiny.toml", "own.toml"), r"own.toml:2: extends: own.toml extends own.toml"),
        (OWN + "every_model = 3\n", r"own.toml:5: every_model: a table was wanted \(found 3\)"),
        (OWN + 'models = [3]\n', r"own.toml: 1 fault  own.toml:5: models.1: .*valid dictionary.*"),
        (OWN + "[[models]]\nname = [3]\n", r".*models.3.name: .*valid string"),
        (OWN + 2 * '[[models]]\nname = "plain"\n', r".*models.3.architecture: .*missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined(base, tmp_path, text, said):
    assert re.match(said, "".join(fault(tmp_path, text)))


def test_a_ring_of_definitions(base, tmp_path):
    (tmp_path / "tiny.toml").write_text(OWN.replace("tiny.toml", "own.toml"))
    said = "tiny.toml:2: extends: own.toml extends tiny.toml extends own.toml"
    assert fault(tmp_path, OWN) == [said]


def test_an_unknown_base(tmp_path):
    with pytest.raises(UnknownNameError, match="no benchmark 'quikstart'; did you mean 'quickstart'"):
        own(tmp_path, OWN.replace("tiny.toml", "quikstart"))
