"""Each stage alone: what it needs, what it says where that is missing, and weights that were given."""

import shutil

import pytest
import torch
from typer.testing import CliRunner

from lapbench import pipeline
from lapbench.benchmark import load_benchmark, select
from lapbench.cli import app
from lapbench.errors import DefinitionError, UnknownNameError, WeightsError
from lapbench.models.weights import save_weights
from lapbench.pipeline.networks import new_network
from pipeline import tiny

PLAIN = tiny.with_explainers(tiny.without_models(tiny.DEFINITION, "WS-LAP"), "grad_cam", "random")
RECIPE = PLAIN[PLAIN.index("[models.recipe]") : PLAIN.index("[[explainers]]")]


def given(folder, weights):
    """A definition with weights instead of a recipe."""
    text = PLAIN.replace(RECIPE, "").replace('name = "plain"', f'name = "plain"\nweights = "{weights}"')
    return tiny.write_definition(folder, name="given.toml", text=text)


def test_explaining_without_weights_says_to_train(tmp_path):
    job = tiny.job(tiny.write_definition(tmp_path, text=PLAIN), tmp_path)

    for stage in (pipeline.explain, pipeline.score, pipeline.report):
        with pytest.raises(WeightsError, match=r"no weights for plain \(.*\): run `lapbench train` first"):
            stage(job)
    assert not (tmp_path / "out").exists()


def test_training_alone_gives_the_weights_files(trained, finished):
    paths = pipeline.train(tiny.job(trained / "tiny.toml", trained))

    assert [path.name.partition("-")[0] for path in paths] == ["ws", "plain"]
    assert tiny.files(trained / "cache" / "weights") == tiny.files(finished.cache / "weights")


def test_weights_keep_their_names_from_release_to_release(tmp_path):
    """Else everybody trains everything again. Only TRAINING_VERSION, or the data, may change them."""
    job = pipeline.Job(load_benchmark("quickstart"), pipeline.Workspace(tmp_path, tmp_path))
    (model,) = job.benchmark.models
    assert job.weights(model, 0).name == "bb-lap-resnet-18559aa5b93f463c.safetensors"


def test_scoring_and_reporting_without_maps_give_rows_that_say_to_explain(trained):
    path = tiny.write_definition(trained, text=PLAIN)
    reasons = pipeline.score(tiny.job(path, trained))
    board = pipeline.report(tiny.job(path, trained))

    wanted = {
        "no maps of Grad-CAM on plain on val: run `lapbench explain` first",
        "no maps of Grad-CAM on plain, random weights on val: run `lapbench explain` first",
        "no maps of Random on val: run `lapbench explain` first",
    }
    assert {reason.partition(": ")[2] for reason in reasons} == wanted
    assert {row.reason for row in board.rows} == wanted
    assert not any(row.complete or row.rank for row in board.rows)
    assert [model.accuracy for model in board.models] == [None]
    assert sorted(p.name for p in (trained / "out").iterdir()) == [
        "leaderboard.csv", "leaderboard.json", "leaderboard.md"
    ]  # fmt: skip


def test_reporting_before_scoring_gives_rows_that_say_to_score(trained):
    path = tiny.write_definition(trained, text=PLAIN)
    assert pipeline.explain(tiny.job(path, trained)) == []
    board = pipeline.report(tiny.job(path, trained))

    assert {row.reason for row in board.rows} == {"its maps are not scored yet: run `lapbench score`"}
    assert board.models[0].accuracy is not None


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_given_weights_replace_a_recipe(finished, tmp_path, kind):
    [trained] = (finished.cache / "weights").glob("plain-*.safetensors")
    if kind == "pt":
        network = new_network(
            tiny.job(finished.definition, finished.folder), load_benchmark(finished.definition).models[1]
        )
        from lapbench.models.weights import load_weights

        network.load_state_dict(load_weights(trained))
        torch.save(network.state_dict(), tmp_path / "mine.pt")
    else:
        shutil.copy(trained, tmp_path / "mine.safetensors")
    board = pipeline.run(tiny.job(given(tmp_path, f"mine.{kind}"), tmp_path))

    means = {
        (r.explainer, r.selection): r.mean
        for r in finished.board.rows
        if r.model == "plain" and not r.randomised
    }
    for row in board.rows:
        if row.model == "plain" and not row.randomised:
            assert row.mean == means[row.explainer, row.selection]
    assert board.models[0].accuracy == finished.board.models[1].accuracy and board.models[0].seeds == ()
    assert not (tmp_path / "cache" / "weights").exists()


def test_given_weights_that_are_missing_are_named(tmp_path):
    path = given(tmp_path, "no.safetensors")

    with pytest.raises(
        WeightsError, match=r"no\.safetensors: there is no such weights file, which plain needs"
    ):
        pipeline.run(tiny.job(path, tmp_path))
    with pytest.raises(WeightsError, match=r"no weights for plain \(.*no\.safetensors\): give the path"):
        pipeline.explain(tiny.job(path, tmp_path))


def test_given_weights_of_another_network_are_named(tmp_path):
    save_weights(tmp_path / "other.safetensors", torch.nn.Linear(2, 3).state_dict(), {})

    with pytest.raises(
        WeightsError, match=r"other\.safetensors do not fit this SizedResNet: missing: conv1\.weight"
    ):
        pipeline.run(tiny.job(given(tmp_path, "other.safetensors"), tmp_path))


def test_weights_to_start_from_that_are_missing_are_named(tmp_path):
    text = PLAIN.replace("[models.recipe]", '[models.recipe]\npretrained = "no.safetensors"')
    job = tiny.job(tiny.write_definition(tmp_path, text=text), tmp_path)

    with pytest.raises(
        WeightsError, match=r"no\.safetensors: there is no such weights file, which plain starts from"
    ):
        pipeline.train(job)


def test_weights_to_start_from_decide_the_training_and_their_folder_does_not(finished, tmp_path):
    [trained] = (finished.cache / "weights").glob("plain-*.safetensors")
    text = PLAIN.replace("[models.recipe]", '[models.recipe]\npretrained = "start.safetensors"')
    names = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        job = tiny.job(tiny.write_definition(folder, text=text), folder)
        shutil.copy(trained, folder / "start.safetensors")
        names.append(job.weights(job.benchmark.models[0], 0).name)
    assert names[0] == names[1] != trained.name
    save_weights(folder / "start.safetensors", torch.nn.Linear(2, 3).state_dict(), {})
    assert job.weights(job.benchmark.models[0], 0).name != names[0]


def test_published_weights_to_start_from_are_named_without_being_fetched(tmp_path):
    text = PLAIN.replace("[models.recipe]", '[models.recipe]\npretrained = "IMAGENET1K_V1"')
    jobs = [tiny.job(tiny.write_definition(tmp_path, text=t), tmp_path) for t in (text, PLAIN)]
    published, own = (job.weights(job.benchmark.models[0], 0).name for job in jobs)

    assert published != own
    text = text.replace("IMAGENET1K_V1", "IMAGENET1K_V9")
    with pytest.raises(
        UnknownNameError, match=r"published weights of resnet18 'IMAGENET1K_V9'; did you mean"
    ):
        pipeline.train(tiny.job(tiny.write_definition(tmp_path, text=text), tmp_path))


def test_definition_and_data_that_disagree_are_listed_at_once(tmp_path):
    text = (
        tiny.DEFINITION.replace('classes = ["present"]', 'classes = ["presents", "dog"]')
        .replace(
            'manifest = "few-digits.toml"',
            'manifest = "few-digits.toml"\nfit = "vall"\nscore = "tests"\ntrain = "x"',
        )
        .replace('target = "present"', 'target = "pressent"')
    )
    with pytest.raises(DefinitionError) as caught:
        pipeline.run(tiny.job(tiny.write_definition(tmp_path, text=text), tmp_path))

    assert str(caught.value).splitlines() == [
        "tiny does not fit its data",
        "  data.train: few-digits has no split 'x'; known: test, train, val",
        "  data.fit: few-digits has no split 'vall'; did you mean 'val'?",
        "  data.score: few-digits has no split 'tests'; did you mean 'test'?",
        "  protocol.target: few-digits has no class 'pressent'; did you mean 'present'?",
        "  models.WS-LAP.plug.concepts.three: few-digits has no class 'presents'; did you mean 'present'?",
        "  models.WS-LAP.plug.concepts.three: few-digits has no class 'dog'; known: absent, present",
    ]
    assert not (tmp_path / "cache").exists()


def test_splits_that_nobody_trains_on_need_not_exist(finished, tmp_path):
    [trained] = (finished.cache / "weights").glob("plain-*.safetensors")
    shutil.copy(trained, tmp_path / "mine.safetensors")
    path = given(tmp_path, "mine.safetensors")
    path.write_text(path.read_text().replace("image_size", 'train = "none"\nselect = "none"\nimage_size'))

    assert all(row.complete for row in pipeline.run(tiny.job(path, tmp_path)).rows)


def test_fewer_models_and_explainers_use_the_same_cache(copied, finished, monkeypatch):
    monkeypatch.setattr("lapbench.pipeline.networks.build", None)
    benchmark = select(
        load_benchmark(copied / "tiny.toml"), models=("plain",), explainers=("deeplift", "Oracle")
    )
    board = pipeline.run(tiny.job(benchmark, copied))

    wanted = {r.key: r.mean for r in finished.board.rows}
    assert {(row.model, row.explainer) for row in board.rows} == {
        ("plain", "DeepLIFT"),
        ("no network", "Oracle"),
    }
    assert all(row.mean == wanted[row.key] for row in board.rows)


def test_controls_alone_need_no_ranked_row(copied):
    benchmark = select(load_benchmark(copied / "tiny.toml"), explainers=("oracle",))
    board = pipeline.run(tiny.job(benchmark, copied))

    assert {row.mean for row in board.rows} == {1.0} and {row.rank for row in board.rows} == {None}
    assert not (copied / "out" / "ranking.png").exists()


def test_another_seed_is_another_training(trained):
    benchmark = select(load_benchmark(tiny.write_definition(trained, text=PLAIN)), seed=7)
    [path] = pipeline.train(tiny.job(benchmark, trained))

    assert len(list(path.parent.glob("plain-*.safetensors"))) == 2


def test_figures_for_print_are_drawn_for_every_model(copied, monkeypatch):
    monkeypatch.chdir(copied)
    path = tiny.write_definition(copied)
    arguments = ["figures", str(path), "--cache", str(copied / "cache"), "--images", "2", "--format", "svg"]

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    drawn = [copied / line for line in result.stdout.splitlines()]
    assert [file.name for file in drawn] == ["ws-lap.svg", "plain.svg"]
    assert all(file.read_bytes().startswith(b"<?xml") for file in drawn)


def test_what_shows_a_report_does_not_replace_it(copied, monkeypatch):
    monkeypatch.setattr("lapbench.report.page.server.PageServer.serve_forever", lambda _: None)
    out, cache = copied / "part", str(copied / "cache")
    given = [str(tiny.write_definition(copied)), "--out", str(out), "--cache", cache]
    part = ["--explainers", "grad_cam,random", "--models", "plain"]
    assert CliRunner().invoke(app, ["report", *given, *part]).exit_code == 0
    before = tiny.files(out)

    refused = CliRunner().invoke(app, ["view", *given, "--no-browser"])
    drawn = CliRunner().invoke(app, ["figures", *given, "--images", "2"])
    assert (refused.exit_code, drawn.exit_code) == (2, 0), refused.output + drawn.output
    message = " ".join(refused.stderr.split())
    assert f"rows are not those that {cache} has for these options" in message
    assert "give the options of the run that wrote it" in message
    assert {name: found for name, found in tiny.files(out).items() if "figures/" not in name} == before

    shown = CliRunner().invoke(app, ["view", *given, *part, "--no-browser"])
    assert shown.exit_code == 0, shown.output
    assert (out / "index.html").is_file()
    assert before.items() <= tiny.files(out).items()


def test_view_writes_a_report_where_there_is_none(copied, monkeypatch):
    monkeypatch.setattr("lapbench.report.page.server.PageServer.serve_forever", lambda _: None)
    given = [
        str(tiny.write_definition(copied)),
        "--out",
        str(copied / "out"),
        "--cache",
        str(copied / "cache"),
    ]
    result = CliRunner().invoke(app, ["view", *given, "--no-browser"])
    assert result.exit_code == 0, result.output
    assert {"leaderboard.json", "index.html"} <= tiny.files(copied / "out").keys()
