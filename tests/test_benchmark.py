"""Definitions: what ships is right; what is wrong is listed at once, with line and nearest right name."""

import re

import pytest
from pipeline import tiny

from lapbench.benchmark import (
    Bla,
    Concept,
    Data,
    Model,
    Plug,
    Protocol,
    load_benchmark,
    loading,
    select,
    shipped,
)
from lapbench.errors import DefinitionError, UnknownNameError
from lapbench.toml import parse_toml


def faults(folder, text):
    """What is said of a definition: one fault a line, without the path."""
    path = tiny.write_definition(folder, text=text)
    with pytest.raises(DefinitionError) as caught:
        load_benchmark(path)
    first, *lines = str(caught.value).splitlines()
    plural = "fault" if len(lines) == 1 else "faults"
    assert first == f"{path}: {len(lines)} {plural}"
    assert all(line.startswith(f"  {path}:") for line in lines)
    return [line.removeprefix(f"  {path}:") for line in lines]


def line_of(text, part):
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize("path", shipped("benchmarks"), ids=lambda path: path.stem)
def test_shipped_definitions_load_by_name_and_by_path(path):
    found = load_benchmark(path.stem)

    assert found == load_benchmark(path) and found.name == path.stem and found.title
    assert {"random", "center", "ones", "oracle"} <= {explainer.name for explainer in found.explainers}
    assert found.protocol.randomised_weights or path.stem == "explainers"  # too dear for every explainer


def test_there_are_shipped_definitions():
    assert {"quickstart", "deeppcb"} <= {path.stem for path in shipped("benchmarks")}


@pytest.mark.parametrize("name", ["deeppcb", "rsna", "rsna_inception"])
def test_table_2_gives_lap_its_own_threshold_and_all_others_the_fitted_one(name):
    claims = {claim.id: claim for claim in load_benchmark(name).claims}
    for supervision in ("WS", "BB"):
        for claim, own in (("T2a", "native"), ("T2a-fitted", "threshold")):
            pairs = claims[f"{claim}-{supervision}"].pairs
            terms = {term for pair in pairs for term in pair}
            assert {term.explainer: term.selection for term in terms} == {
                "LAP All": own,
                "Grad-CAM": "threshold",
                "Guided Grad-CAM": "threshold",
                "Guided Backprop": "threshold",
                "DeepLIFT": "threshold",
                "Relevance-CAM": "threshold",
            }


def compared(claim):
    """What a claim sets against what: model, explainer and measure of both."""
    return [[(term.model, term.explainer, term.score) for term in pair] for pair in claim.pairs]


@pytest.mark.parametrize(
    ("name", "network"), [("deeppcb", "ResNet-18"), ("rsna", "ResNet-18"), ("rsna_inception", "Inception V3")]
)
def test_table_1_compares_boxes_with_labels_at_every_lap(name, network):
    found = [compared(claim) for claim in load_benchmark(name).claims if claim.id.startswith("T1b-boxes")]
    ours, theirs = (f"{supervision}-LAP {network}" for supervision in ("BB", "WS"))
    measures = [f"{kind}_{lap}" for kind in ("predictivity", "faithfulness") for lap in (1, 2, 3, 4)]

    assert sorted(found) == sorted([[(ours, None, m), (theirs, None, m)]] for m in measures)


@pytest.mark.parametrize(
    ("name", "networks"),
    [("celeba_smile", ("ResNet-18", "Inception V3")), ("celeba_smile_small", ("ResNet-18",))],
)
def test_table_3_asks_every_lap_for_its_faithfulness(name, networks):
    claims = [claim for claim in load_benchmark(name).claims if claim.id.startswith("T3b-faithfulness")]

    assert [compared(claim) for claim in claims] == [
        [[(f"WS-LAP {network}", None, f"faithfulness_{lap}"), (f"WS-LAP {network}", None, "accuracy")]]
        for network in networks
        for lap in (1, 2, 3, 4)
    ]


def test_the_two_readings_of_algorithm_1_are_compared():
    claims = [claim for claim in load_benchmark("ablations").claims if claim.id.startswith("A3-soft")]

    assert [compared(claim) for claim in claims] == [
        [[(model, "LAP All", "iou"), (model, "LAP All (strict)", "iou")]] for model in ("WS-LAP", "BB-LAP")
    ]


@pytest.mark.parametrize("name", ["deeppcb", "rsna", "rsna_inception", "celeba_smile", "celeba_smile_small"])
def test_what_is_compared_in_accuracy_was_trained_as_long(name):
    benchmark = load_benchmark(name)
    recipes = [model.recipe for model in benchmark.models]

    assert any(claim.id.startswith("C2") for claim in benchmark.claims)
    assert len({(recipe.epochs, recipe.iterations) for recipe in recipes if recipe}) == 1 and all(recipes)


def test_an_unknown_name_is_answered_with_the_nearest():
    said = re.escape("there is no benchmark 'quikstart'; did you mean 'quickstart'?")
    with pytest.raises(UnknownNameError, match=f"^{said}$"):
        load_benchmark("quikstart")
    with pytest.raises(DefinitionError, match=r"no\.toml: cannot be read"):
        load_benchmark("no.toml")


def test_the_tiny_definition_is_read_as_it_stands(tmp_path):
    found = load_benchmark(tiny.write_definition(tmp_path))

    assert [model.name for model in found.models] == ["WS-LAP", "plain"]
    assert [explainer.row for explainer in found.explainers][:3] == ["LAP All", "LAP 3", "Grad-CAM"]
    assert found.protocol == Protocol(target="present", resamples=99)
    assert found.models[0].recipe.losses.concordance == 0.25


def test_paths_belong_to_the_folder_of_the_definition(tmp_path, monkeypatch):
    text = tiny.DEFINITION.replace("[models.recipe]", '[models.recipe]\npretrained = "start.pt"')
    start, end = text.rindex("[models.recipe]"), text.index("[[explainers]]")
    text = (text[:start] + text[end:]).replace('name = "plain"', 'name = "plain"\nweights = "../w/plain.pt"')
    path = tiny.write_definition(tmp_path / "here", text=text)
    monkeypatch.chdir(tmp_path)
    found = load_benchmark(path.relative_to(tmp_path))

    assert (tmp_path / found.data.manifest).samefile(tmp_path / "here" / "few-digits.toml")
    assert found.models[0].recipe.pretrained.as_posix() == "here/start.pt"
    assert found.models[1].weights.as_posix() == "here/../w/plain.pt"


def test_the_name_of_a_shipped_manifest_is_no_path(tmp_path):
    text = tiny.DEFINITION.replace("few-digits.toml", "digits")
    assert load_benchmark(tiny.write_definition(tmp_path, text=text)).data.manifest == "digits"


def test_every_fault_is_listed_at_once(tmp_path):
    text = (
        tiny.DEFINITION.replace("version = 1\n", "")
        .replace("channels = 1", "chanels = 1\nfit = 'test'")
        .replace("[32, 32]", "[32, 0]")
        .replace('supervision = "weak"', 'supervision = "week"')
        .replace("epochs = 1", "epochs = -1")
        .replace('name = "deeplift"', 'name = "deep_lift"')
        .replace('name = "grad_cam"', 'name = "grad_cam"\nparameters = { layr = "layer4" }')
        .replace("resamples", "resample")
    )

    def at(part):
        return line_of(text, part)

    few = "'none', 'weak' or 'boxes'"
    assert faults(tmp_path, text) == [
        "1: version: this field is missing",
        f"{at('[32, 0]')}: data.image_size.2: Input should be greater than 0 (found 0)",
        f"{at('chanels')}: data.chanels: unknown field; did you mean 'channels'?",
        f"{at('week')}: models.1.recipe.supervision: Input should be {few} (found 'week')",
        f"{at('epochs = -1')}: models.2.recipe.epochs: Input should be greater than or equal to 0 (found -1)",
        f"{at('grad_cam') - 1}: explainers.3: explainer 'grad_cam' has no parameter 'layr'; "
        "did you mean 'layer'?",
        f"{at('deep_lift')}: explainers.4.name: there is no explainer 'deep_lift'; did you mean 'deeplift'?",
        f"{at('resample')}: protocol.resample: unknown field; did you mean 'resamples'?",
    ]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"logits": "bounded", "draws": 0, "threshold": 0.0}),
        ({"preset": "BLA-T"}, {"logits": "bounded", "draws": 0, "threshold": 0.98}),
        ({"preset": "L2X-F"}, {"logits": "linear", "draws": 8, "threshold": 0.0}),
        ({"preset": "L2X"}, {"logits": "linear", "temperature": 0.5, "temperature_mode": "divide"}),
        ({"preset": "L2X-F", "draws": 3, "temperature": 2}, {"logits": "linear", "draws": 3}),
        ({"preset": "BLA-T", "threshold": 0.5}, {"threshold": 0.5, "temperature": 0.1}),
    ],
)
def test_a_preset_gives_what_is_not_given(given, found):
    assert found.items() <= Bla(**given).model_dump().items()
    assert Bla.model_validate(Bla(**given).model_dump()) == Bla(**given)


def with_bla(table: str, recipe: str = "") -> str:
    at = tiny.DEFINITION.index("[models.recipe]", tiny.DEFINITION.index('name = "plain"'))
    text = tiny.DEFINITION[:at] + f"[models.bla]\n{table}\n\n" + tiny.DEFINITION[at:]
    return text.replace("epochs = 1\n", f"epochs = 1\n{recipe}\n", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (with_bla('preset = "BLA-X"'), "preset: Input should be 'L2X', 'L2X-F', 'BLA', 'BLA-T' or 'BLA-PH'"),
        (with_bla("threshold = 1.0"), "bla.threshold: Input should be less than 1"),
        (with_bla("treshold = 0.5"), "bla.treshold: unknown field; did you mean 'threshold'?"),
        (
            with_bla('preset = "BLA-PH"'),
            "BLA-PH leaves a trained network as it is: its recipe needs start or",
        ),
        (with_bla('preset = "BLA-PH"', 'start = "WS-LAP"\nlearning = ["bla", "fc"]'), 'learning = ["bla"]'),
        (with_bla('preset = "L2X"', 'start = "WS-LAP"\nlearning = ["bla"]'), "needs teacher = 'network'"),
        (with_bla('preset = "L2X"', 'teacher = "network"\nlearning = ["bla"]'), "L2X leaves a trained"),
        (with_bla("", 'teacher = "network"'), "teacher = 'network' leaves a trained network as it is"),
        (
            tiny.DEFINITION.replace("epochs = 1\n", 'epochs = 1\nteacher = "network"\n', 1),
            "teacher = 'network' is for attention, which needs [models.bla]",
        ),
        (
            tiny.DEFINITION.replace("[models.plug]", "[models.bla]\n[models.plug]", 1),
            "explains itself in one way: give at most one of [models.plug] and [models.bla]",
        ),
    ],
)
def test_what_bla_cannot_be_is_said(text, message, tmp_path):
    assert any(message in fault for fault in faults(tmp_path, text))


def test_bla_behind_a_trained_network_says_so(tmp_path):
    text = with_bla('preset = "BLA-PH"', 'start = "WS-LAP"\nlearning = ["bla"]')
    model = load_benchmark(tiny.write_definition(tmp_path, text=text)).models[1]
    assert (model.bla.preset, model.bla.threshold) == ("BLA-PH", 0.98)


def test_contradictions_are_listed_beside_unknown_fields(tmp_path):
    text = tiny.DEFINITION.replace("channels = 1", "channels = 1\nfit = 'test'\nmeen = [0.5]").replace(
        'name = "plain"', 'name = "plain"\nweights = "w.pt"\ncolour = "red"'
    )
    found = faults(tmp_path, text)

    assert found == [
        f"{line_of(text, 'meen')}: data.meen: unknown field; did you mean 'mean'?",
        f"{line_of(text, 'colour')}: models.2.colour: unknown field; "
        "known: antehoc, architecture, bla, concept_mlp, decoder, name, parameters, plug, recipe, seeds, "
        "weights",
        f"{line_of(text, '[data]')}: data: "
        "the threshold may not be fitted on the split it is scored on: both are 'test'",
        f"{line_of(text, 'weights') - 2}: models.2: give either a recipe or weights, not both",
    ]


DATA = {"manifest": "digits", "image_size": (8, 8)}
MODEL = {"name": "m", "architecture": "resnet18", "recipe": {"epochs": 1}}
CONCEPTS = ({"name": "a"}, {"name": "b"})


@pytest.mark.parametrize(
    ("table", "fields", "said"),
    [
        (Data, DATA | {"fit": "test"}, "fitted on the split it is scored on: both are 'test'"),
        (Data, DATA | {"train": "test"}, "'test' may not train the network or choose its epoch"),
        (Data, DATA | {"select": "test"}, "'test' may not train the network or choose its epoch"),
        (Data, DATA | {"channels": 1}, "one value per channel, 1 each (found 3 and 3)"),
        (Data, DATA | {"channels": 2}, "Input should be 1 or 3"),
        (Data, DATA | {"std": (1, 1, 0)}, "greater than 0"),
        (Data, DATA | {"score_limit": 0}, "greater than 0"),
        (Model, MODEL | {"recipe": None}, "give either a recipe or weights"),
        (Model, MODEL | {"weights": "w.pt"}, "give either a recipe or weights, not both"),
        (Model, {**MODEL, "recipe": None, "weights": "w.pt", "seeds": (1, 2)}, "given weights have no seeds"),
        (Model, MODEL | {"seeds": ()}, "at least 1 item"),
        (Model, MODEL | {"seeds": (1, 1)}, "seeds must differ (found [1, 1])"),
        (Model, MODEL | {"recipe": {"epochs": 1, "supervision": "boxes"}}, "concept heads, which need"),
        (Model, MODEL | {"architecture": "resnet81"}, "'resnet81'; did you mean 'resnet18'?"),
        (Model, MODEL | {"parameters": {"widht": 4}}, "no parameter 'widht'; did you mean 'width'?"),
        (Model, MODEL | {"parameters": {"width": 0}}, "parameter 'width' of architecture 'resnet18'"),
        (Model, MODEL | {"name": "a,b"}, "String should match pattern"),
        (Plug, {"concepts": CONCEPTS}, "'identity' needs one concept, found 2: use max, sum or trainable"),
        (Plug, {"concepts": ()}, "LAP needs at least one concept, or each_class"),
        (Plug, {"concepts": CONCEPTS[:1], "each_class": {}}, "either concepts or each_class, not both"),
        (Plug, {"each_class": {}}, "'identity' needs one concept, not each_class: use max, sum or trainable"),
        (Plug, {"concepts": CONCEPTS[:1] * 2, "aggregation": "max"}, "names must differ (found ['a', 'a'])"),
        (Plug, {"concepts": CONCEPTS[:1], "alpha_init": 0}, "a trainable alpha would never move"),
        (Protocol, {"confidence": 1.0}, "less than 1"),
        (Protocol, {"selections": ("topk",)}, "'threshold', 'top-k' or 'native'"),
    ],
)  # fmt: skip
def test_contradictions(table, fields, said):
    with pytest.raises(ValueError, match="validation error") as caught:
        table.model_validate(fields)
    assert said in str(caught.value)


def test_two_contradictions_of_one_table_are_both_said():
    with pytest.raises(ValueError, match="validation error") as caught:
        Data.model_validate(DATA | {"fit": "test", "channels": 1})
    assert "both are 'test'; mean and std need one value per channel" in str(caught.value)


def test_each_class_stands_for_a_concept_named_like_every_class():
    areas = {"min_area": 0.2, "max_area": None, "inactive_area": 0.05}
    short = Plug(each_class=areas, aggregation="trainable")
    long = Plug(
        concepts=[{"name": n, "classes": [n], **areas} for n in ("cat", "dog")], aggregation="trainable"
    )

    assert short.of(("cat", "dog")) == long == long.of(("other", "classes"))
    assert "each_class" in short.model_dump() and "each_class" not in long.model_dump()  # old names stay


def test_a_fixed_alpha_of_zero_is_average_pooling_and_allowed():
    assert Plug(concepts=CONCEPTS[:1], alpha_init=0, alpha_trainable=False).alpha_init == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "plain"', 'name = "WS-LAP"'), "model names must differ (twice: WS-LAP)"),
        (('label = "LAP 3"', 'label = "Grad-CAM"'), "explainer row names must differ (twice: Grad-CAM)"),
    ],
)
def test_names_may_be_taken_once(tmp_path, change, said):
    assert faults(tmp_path, tiny.DEFINITION.replace(*change)) == [f"1: the file: {said}"]


def test_select_takes_rows_and_registered_names_and_a_seed(tmp_path):
    whole = load_benchmark(tiny.write_definition(tmp_path))
    few = select(whole, models=("plain",), explainers=("lap", "Grad-CAM"), seed=5)

    assert [m.name for m in few.models] == ["plain"] and few.models[0].seeds == (5,)
    assert [e.row for e in few.explainers] == ["LAP 3", "Grad-CAM"]
    assert select(whole) == whole


def test_select_leaves_given_weights_their_seed(tmp_path):
    text = (
        tiny.DEFINITION[: tiny.DEFINITION.rindex("[models.recipe]")]
        + tiny.DEFINITION[tiny.DEFINITION.index("[[explainers]]") :]
    )
    text = text.replace('name = "plain"', 'name = "plain"\nweights = "w.pt"')
    found = select(load_benchmark(tiny.write_definition(tmp_path, text=text)), seed=5)

    assert [model.seeds for model in found.models] == [(5,), (0,)]


def test_select_refuses_what_is_not_there(tmp_path):
    whole = load_benchmark(tiny.write_definition(tmp_path))

    with pytest.raises(UnknownNameError, match=r"no model in tiny 'plan'; did you mean 'plain'\?"):
        select(whole, models=("plan",))
    with pytest.raises(UnknownNameError, match=r"no explainer in tiny 'grad_cm'; did you mean 'grad_cam'\?"):
        select(whole, explainers=("grad_cm",))


def test_an_installed_package_carries_its_definitions_inside(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "mine.toml").touch()
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "benchmark" / "loading.py"))

    assert [path.name for path in shipped("benchmarks")] == ["mine.toml"]


def test_false_drops_a_term_and_is_no_area():
    concept = parse_toml('name = "c"\nmin_area = false\nmax_area = 0.25', Concept, where="here")
    assert (concept.min_area, concept.max_area, concept.inactive_area) == (None, 0.25, 0.1)
    assert Concept.model_validate(concept.model_dump(mode="json")) == concept
    with pytest.raises(DefinitionError, match="max_area"):
        parse_toml('name = "c"\nmax_area = true', Concept, where="here")
