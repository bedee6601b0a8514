"""A benchmark of networks with bounded logit attention: trained in stages, explained, scored, reported."""

import numpy as np
import pytest
import torch

from lapbench import pipeline
from lapbench.models import deciding, load_weights
from lapbench.models.predict import answer
from lapbench.models.weights import load_record
from lapbench.pipeline.answering import read_answers
from lapbench.pipeline.classification import measures_by_image
from lapbench.pipeline.job import Subject
from lapbench.pipeline.networks import load_network
from lapbench.report.leaderboard import render_markdown
from tests.pipeline import tiny

NETWORK = """
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 1, stem_pool = false }
"""


def attending(name: str, preset: str, learning: str, more: str = "", teacher: str = "labels") -> str:
    return f"""
[[models]]
name = "{name}"
{NETWORK}
[models.bla]
preset = "{preset}"
{more}
[models.recipe]
start = "plain"
learning = {learning}
teacher = "{teacher}"
epochs = 2
iterations = 3
batch_size = 16
learning_rate = 1e-2

"""


EXPLAINERS = (
    "bla",
    "bla_selection",
    "lap",
    "grad_cam",
    "guided_backprop",
    "deeplift",
    "relevance_cam",
    "cam",
)


def definition() -> str:
    text = tiny.without_models(tiny.DEFINITION, "WS-LAP").replace("stem_stride = 2", "stem_stride = 1")
    models = [
        attending("BLA-PH", "BLA-PH", '["bla"]'),
        attending("BLA-T", "BLA-T", '["bla", "fc"]'),
        attending("L2X", "L2X", '["bla"]', "draws = 2", "network"),
        attending("L2X-F", "L2X-F", '["bla", "fc"]', "draws = 3"),
    ]
    text = tiny.with_explainers(text, *EXPLAINERS)
    return text.replace("[[explainers]]", "".join(models) + "[[explainers]]", 1)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bla")
    job = tiny.job(tiny.write_definition(folder, text=definition()), folder)
    return job, pipeline.run(job)


def test_only_what_the_recipe_names_has_learnt(done):
    job, _ = done
    weights = {m.name: load_weights(job.weights(m, 0)) for m in job.benchmark.models}
    plain = weights.pop("plain")
    for name, state in weights.items():
        moved = {key for key, value in plain.items() if not torch.equal(value, state[key])}
        assert moved == (set() if name in ("BLA-PH", "L2X") else {"fc.weight", "fc.bias"})
        assert set(state) - set(plain) == {"avgpool.score.weight", "avgpool.score.bias"}
    record = load_record(job.weights(job.benchmark.models[1], 0))
    assert record["bla"]["preset"] == "BLA-PH" and record["recipe"]["start"] == "plain"
    assert "teacher" not in record["recipe"]
    assert load_record(job.weights(job.benchmark.models[3], 0))["recipe"]["teacher"] == "network"


def test_every_explainer_that_applies_has_a_row(done):
    _, leaderboard = done
    rows = {(row.model, row.explainer) for row in leaderboard.rows if not row.randomised}
    for model in ("BLA-PH", "BLA-T", "L2X", "L2X-F"):
        assert {(model, row) for row in ("BLA", "BLA selection", "Grad-CAM", "DeepLIFT", "CAM")} <= rows
    assert not {("plain", "BLA"), ("BLA-T", "LAP")} & rows
    own = [row for row in leaderboard.rows if row.selection == "native"]
    assert {row.explainer for row in own} == {"BLA selection"}
    assert all(row.complete for row in leaderboard.rows)


def test_soft_and_hard_are_measures_of_the_model(done):
    job, leaderboard = done
    labels = job.considered("score").labels
    for summary in leaderboard.models:
        assert ("selected" in summary.measures) == (summary.name != "plain")
    for model in job.benchmark.models[1:]:
        subject = Subject(model, 0, job.weights(model, 0))
        network = load_network(job, subject)
        tables = measures_by_image(job, model)
        answers = read_answers(job, subject, "score")
        images = torch.from_numpy(np.stack([job.considered("score")[i].image for i in range(len(labels))]))
        with torch.no_grad():
            soft = network((images - 0.5) / 0.25)
            with deciding(network, "hard"):
                hard = network((images - 0.5) / 0.25)
        torch.testing.assert_close(torch.from_numpy(answers["hard"]), hard, rtol=1e-4, atol=1e-5)
        said, said_hard = soft.argmax(1).numpy(), hard.argmax(1).numpy()
        assert (tables["accuracy_hard"][0] == (said_hard == labels)).all()
        assert (tables["accuracy_soft"][0] == tables["accuracy"][0]).all()
        assert (tables["agreement_hard"][0] == (said == said_hard)).all()
        sizes = tables["selected"][0].tolist()
        common = max(sorted(set(sizes)), key=sizes.count)
        assert tables["size_varies"][0].tolist() == [size != common for size in sizes]
        assert tables["selected"][0].min() >= {"L2X": 2, "L2X-F": 3}.get(model.name, 1)
    text = render_markdown(leaderboard)
    assert "positions selected" in text and "| BLA-PH |" in text


def test_what_is_done_is_not_done_again(done):
    job, leaderboard = done
    before = tiny.files(job.workspace.cache)
    again = pipeline.run(tiny.job(job.benchmark, job.workspace.cache.parent, out="again"))
    assert tiny.files(job.workspace.cache) == before
    assert [row.key for row in again.rows] == [row.key for row in leaderboard.rows]


def test_the_hard_output_is_another_network_with_the_same_measures(done):
    job, _ = done
    model = job.benchmark.models[2]
    other = model.model_copy(update={"bla": model.bla.model_copy(update={"output": "hard"})})
    soft, hard = (Subject(one, 0, job.weights(model, 0)) for one in (model, other))
    images = torch.randn(4, 1, 32, 32)
    found, expected = (answer(load_network(job, subject), images) for subject in (hard, soft))
    assert torch.equal(found.logits, expected.hard) and torch.equal(found.soft, expected.logits)
    assert torch.equal(found.selected, expected.selected)
    assert hard.identity() != soft.identity()


def test_maps_of_networks_that_draw_have_new_names_and_weights_the_old(done):
    """How evaluation draws decides what is answered; as long as it is not set, it renames no weights."""
    job, _ = done
    *others, _, drawing = job.benchmark.models
    more = drawing.model_copy(update={"bla": drawing.bla.model_copy(update={"evaluation_draws": 4})})
    assert not any("evaluation" in Subject(m, 0, job.weights(m, 0)).identity() for m in others)
    assert "evaluation" in Subject(drawing, 0, job.weights(drawing, 0)).identity()
    assert "evaluation_draws" not in drawing.bla.model_dump()
    assert more.bla.model_dump()["evaluation_draws"] == 4
    assert job.weights(more, 0) != job.weights(drawing, 0)


def test_networks_without_it_keep_their_names(tmp_path):
    job = tiny.job(tiny.write_definition(tmp_path), tmp_path)
    plain = job.benchmark.models[1]
    assert "bla" not in Subject(plain, 0, tmp_path / "tiny.toml").identity()
