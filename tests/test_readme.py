"""What the README shows must run as it stands there."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import lapbench
from lapbench.benchmark import Claim, Model, Protocol, Recipe, load_benchmark
from lapbench.cli import app
from lapbench.data import Manifest
from lapbench.models import build
from lapbench.registry import explainers
from lapbench.toml import Table, parse_toml
from tests.report.folders import write_results

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def block_with(text: str) -> str:
    """The one block of Python that holds a text."""
    (block,) = [block for block in blocks("python") if text in block]
    return block


def test_lap_is_a_layer_like_any_other():
    names: dict[str, object] = {}

    exec(block_with("network = plug("), names)

    assert names["logits"].shape == (1, 2)


def test_explainers_are_asked_together():
    names: dict[str, object] = {}

    exec(block_with("explain_together"), names)

    assert [maps.values.shape[0] for maps in names["maps"]] == [4, 4, 4]


def test_every_explainer_is_named():
    section = README.partition("## The explainers")[2].partition("Explainers that are asked")[0]

    assert {spec.name for spec in explainers if spec.origin == "lapbench"} <= set(
        re.findall(r"`(\w+)`", section)
    )


def test_every_switch_of_the_protocol_stands_there_with_its_default():
    section = README.partition("The switches of `[protocol]`:")[2].partition("\n## ")[0]
    lines = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    found: dict[str, object] = {}
    for names, _, defaults, _ in lines:
        switches = re.findall(r"`(\w+)`", names)
        values = re.findall(r"`([^`]+)`|none", defaults)
        parsed = [tomllib.loads(f"value = {value}")["value"] if value else None for value in values]
        found |= dict(zip(switches, parsed, strict=True))

    assert found == Protocol().model_dump(mode="json")


def test_the_cards_are_those_of_today():
    """Made by: lapbench ls explainers -v > reports/explainers/cards.txt"""
    shown = CliRunner().invoke(app, ["ls", "explainers", "-v"]).output

    assert (ROOT / "reports/explainers/cards.txt").read_text(encoding="utf-8") == shown


def test_the_ten_line_explainer_keeps_the_contract(registered):
    names: dict[str, object] = {"__name__": "readme"}
    exec(block_with("gradient_norm"), names)
    model = build("resnet18", num_classes=2, in_channels=3, parameters={"width": 8, "blocks": [1, 1, 1, 1]})

    lapbench.check_explainer(names["gradient_norm"], model, torch.rand(3, 3, 64, 64), torch.tensor([0, 1, 0]))

    assert explainers.get("gradient_norm").title == "Gradient norm"


def test_an_object_of_captums_is_an_explainer(registered):
    exec(block_with("from_attribute"), {"__name__": "readme"})

    assert explainers.get("saliency").title == "Saliency"


def test_the_python_interface_has_the_names_it_shows():
    code = block_with("lapbench.Job")

    compile(code, "README.md", "exec")
    assert all(hasattr(lapbench, name) for name in re.findall(r"lapbench\.(\w+)", code))


def test_results_are_read_as_tables(tmp_path, monkeypatch):
    pytest.importorskip("pandas", reason="pandas is an extra")
    write_results(tmp_path / "reports" / "quickstart", {"grad_cam": [0.5, 0.25], "lap": [0.75, 1.0]})
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    exec(block_with("load_results"), names)

    assert len(names["images"]) > len(names["rows"]) > 0


def test_a_definition_may_extend_another(tmp_path):
    path = tmp_path / "scans.toml"
    path.write_text(blocks("toml")[4])
    found, base = load_benchmark(path), load_benchmark("self_explaining")

    assert found.data.image_size == (224, 224)
    assert {model.name for model in found.models if model.plug and model.plug.concepts} == {
        "WS-LAP",
        "BB-LAP",
    }
    assert all(model.plug.concepts[0].name == "finding" for model in found.models[1:3])
    assert (found.claims, found.explainers) == (base.claims, base.explainers)


def test_the_manifest_the_model_and_the_claims_are_valid():
    class Models(Table):
        models: tuple[Model, ...]

    class Claims(Table):
        claims: tuple[Claim, ...]

    manifest = parse_toml(blocks("toml")[0], Manifest, where="README.md")
    (model,) = parse_toml(blocks("toml")[1], Models, where="README.md").models
    recipe = tomllib.loads(blocks("toml")[2])["models"]["recipe"]
    (bla,) = parse_toml(blocks("toml")[3], Models, where="README.md").models
    assert bla.bla.preset == "BLA-PH" and bla.recipe.learning == ("bla",)
    table, loss = parse_toml(blocks("toml")[5], Claims, where="README.md").claims

    assert manifest.classes == ("healthy", "finding")
    assert model.weights == Path("ours.safetensors")
    assert Recipe.model_validate(recipe).learning == ("lap",)
    assert len(table.pairs) == 2 and loss.margin == 0.01


def test_every_command_is_mentioned():
    commands = set(typer.main.get_command(app).commands)
    assert {"run", "gate", "baseline"} <= commands

    missing = {name for name in commands if not re.search(rf"`(lapbench )?{name}\b", README)}

    assert not missing
