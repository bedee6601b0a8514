"""Landmarks and captions from training to the page, by the same commands as classification."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lapbench import pipeline
from lapbench.benchmark import load_benchmark, shipped
from lapbench.data.captions import caption_scores
from lapbench.data.landmarks import landmark_scores
from lapbench.errors import DefinitionError, UnknownNameError
from lapbench.models import Captioner, load_record, predict
from lapbench.pipeline.answering import read_answers
from lapbench.pipeline.inquiry import Asked, _asks
from lapbench.pipeline.job import Subject
from lapbench.pipeline.networks import load_network
from lapbench.pipeline.samples import Samples
from lapbench.report import Leaderboard
from pipeline import tiny

DEFINITION = """
name = "TASK"
version = 1
title = "Tiny"

[data]
manifest = "TASK.toml"
image_size = [32, 32]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[[models]]
name = "plain"
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }
seeds = [0, 1]
DECODER
[models.recipe]
epochs = 2
iterations = 3
batch_size = 16
learning_rate = 3e-3

[[models]]
name = "with LAP"
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }
DECODER
[models.plug]
concepts = [{ name = "anything", min_area = false, max_area = false, inactive_area = false }]
[models.recipe]
epochs = 1
iterations = 3
batch_size = 16
learning_rate = 3e-3

[[models]]
name = "with map"
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }
antehoc = {}
DECODER
[models.recipe]
epochs = 1
iterations = 3
batch_size = 16
learning_rate = 3e-3

[[explainers]]
name = "antehoc"
[[explainers]]
name = "lap"
parameters = { concept = "anything" }
[[explainers]]
name = "grad_cam"
[[explainers]]
name = "gradient"
[[explainers]]
name = "guided_backprop"
[[explainers]]
name = "lrp"
[[explainers]]
name = "random"

[protocol]
resamples = 99
randomised_weights = false
removal_grid = 2

[[claims]]
id = "A"
says = "two networks are as good"
higher = { model = "plain", measure = "MEASURE" }
than = [{ model = "with LAP", measure = "MEASURE" }]
margin = 0.9
"""
MEASURES = {
    "landmarks": ("normalised_error", "landmark_accuracy"),
    "captions": ("word_accuracy", "caption_accuracy"),
}


FEW = {"landmarks": "train = 32\nval = 1\ntest = 2\n", "captions": "train = 32\nval = 4\ntest = 3\n"}


@dataclass(frozen=True)
class Ran:
    task: str
    job: pipeline.Job
    board: Leaderboard
    notes: list[str]


def definition(folder: Path, task: str) -> Path:
    """Write a tiny definition for faces or scenes, with few of them, and return its path."""
    data = {"landmarks": "faces", "captions": "scenes"}[task]
    manifest = (
        next(p for p in shipped("data_manifests") if p.stem == data).read_text().partition("[reader.")[0]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task}.toml").write_text(f"{manifest}[reader.parameters]\n{FEW[task]}")
    decoder = "decoder = { hidden = 8 }\n" if task == "captions" else ""
    text = DEFINITION.replace("TASK", task).replace("DECODER", decoder).replace("MEASURE", MEASURES[task][1])
    (folder / "definition.toml").write_text(text)
    return folder / "definition.toml"


@pytest.fixture(scope="module", params=["landmarks", "captions"])
def ran(request, tmp_path_factory) -> Ran:
    folder, notes = tmp_path_factory.mktemp(request.param), []
    job = tiny.job(definition(folder, request.param), folder, notes=notes)
    return Ran(request.param, job, pipeline.run(job), notes)


def test_every_target_with_a_box_is_explained_and_scored(ran):
    rows = {(row.model, row.explainer, row.selection): row for row in ran.board.rows if not row.randomised}
    n = len(ran.job.considered("score"))
    assert n == {"landmarks": 20, "captions": 6}[ran.task]
    for model in ("plain", "with LAP"):
        for explainer in ("Grad-CAM", "Gradient", "Guided Backprop"):
            row = rows[model, explainer, "threshold"]
            assert (row.complete, row.n) == (True, n), row.reason
            assert -1 <= row.measures["removal_correlation"].mean <= 1
    assert rows["with LAP", "LAP", "native"].complete
    (title,) = {explainer for model, explainer, _ in rows if explainer.lower().startswith("ante")}
    assert rows["with map", title, "top-k"].complete
    failed = rows["plain", "LRP", "threshold"]
    assert failed.complete == (ran.task == "landmarks")
    if not failed.complete:
        assert "LRP has no rule for" in failed.reason


def test_networks_are_measured_once_an_image(ran):
    """Image by image, from what they answered to the first sample of each."""
    split, data = ran.job.considered("score"), ran.job.benchmark.data
    images = split.first_of_image
    assert len(images) == {"landmarks": 2, "captions": 3}[ran.task]
    for model in ran.job.benchmark.models:
        found = []
        for seed in model.seeds:
            answers = read_answers(ran.job, Subject(model, seed, ran.job.weights(model, seed)), "score")
            for position in images:
                wanted = split.answers[position : position + 1]
                if ran.task == "captions":
                    assert answers["tokens"].shape == (6, 9)
                    scores = caption_scores(answers["tokens"][position : position + 1], wanted)
                else:
                    said = answers["logits"][position : position + 1]
                    scores = landmark_scores(said, wanted, split.view.classes, data.image_size)
                found.append([scores[name].item() for name in MEASURES[ran.task]])
        (summary,) = [one for one in ran.board.models if one.name == model.name]
        assert (summary.task, summary.n, summary.accuracy, summary.near_chance) == (
            ran.task,
            len(images),
            None,
            False,
        )
        for name, mean in zip(MEASURES[ran.task], np.mean(found, axis=0), strict=True):
            assert summary.measures[name].mean == pytest.approx(mean)
            assert summary.measures[name].ci_low <= mean <= summary.measures[name].ci_high


def test_the_report_tells_of_the_task(ran):
    table = (ran.job.workspace.out / "leaderboard.md").read_text()
    first, second = (name.replace("_", " ") for name in MEASURES[ran.task])
    assert f"| model | {first} | {second} | images | seeds | notes |" in table
    assert "chance" not in table.partition("## By")[0]
    page = pipeline.write_page(ran.job, ran.board).read_text()
    assert {"landmarks": "nose_x", "captions": "circle"}[ran.task] in page
    record = load_record(next((ran.job.workspace.cache / "weights").glob("plain-*.safetensors")))
    told = {"landmarks": "val_normalised_error", "captions": "val_token_accuracy"}[ran.task]
    assert len(record["epochs"]) == 2
    assert told in record["epochs"][0]
    assert record["recipe"]["balanced"] is True  # as defined; of this task it means nothing


def test_claims_name_the_measures_of_the_task(ran):
    (claim,) = pipeline.check_claims(ran.job).claims
    n_images = {"landmarks": 2, "captions": 3}[ran.task]
    assert (claim.parts[0].n, claim.parts[0].trainings) == (n_images, 1)
    assert claim.parts[0].low is not None


def test_nothing_is_made_twice(ran):
    before = tiny.files(ran.job.workspace.cache)
    again = pipeline.run(pipeline.Job(ran.job.benchmark, ran.job.workspace))
    assert tiny.files(ran.job.workspace.cache) == before
    assert again == ran.board


@pytest.mark.parametrize(
    ("task", "old", "new", "message"),
    [
        (
            "captions",
            "decoder = { hidden = 8 }",
            "",
            r"models\.plain: scenes is for captions, which needs \[mod",
        ),
        (
            "landmarks",
            "seeds = [0, 1]",
            "decoder = {}",
            r"faces is for landmarks, which has no use for \[models",
        ),
        ("landmarks", "resamples", 'target = "predicted"\nresamples', r"a network predicts no single target"),
        (
            "landmarks",
            "resamples",
            'score_images = "correct-positives"\nresamples',
            r"no image is classified",
        ),
        (
            "landmarks",
            "epochs = 1\n",
            'epochs = 1\nsupervision = "weak"\n',
            r"supervision 'weak' is of classes",
        ),
        ("captions", "[models.plug]", "concept_mlp = {}\n[models.plug]", r"and concept_mlp reads classes"),
        (
            "landmarks",
            "resamples",
            'target = "nose"\nresamples',
            r"has no class 'nose'; did you mean 'nose_[xy]'",
        ),
    ],
)
def test_definitions_that_do_not_fit_their_task(tmp_path, task, old, new, message):
    path = definition(tmp_path, task)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DefinitionError, match=message):
        pipeline.train(tiny.job(path, tmp_path))


def test_a_measure_of_another_task(ran, tmp_path):
    benchmark = load_benchmark(definition(tmp_path, ran.task))
    (claim,) = benchmark.claims
    wrong = claim.model_copy(update={"higher": claim.higher.model_copy(update={"measure": "accuracy"})})
    job = pipeline.Job(ran.job.benchmark.model_copy(update={"claims": (wrong,)}), ran.job.workspace)
    with pytest.raises(UnknownNameError, match="measure of plain"):
        pipeline.check_claims(job)


def test_what_the_removal_of_pixels_does_to_a_coordinate(ran):
    """However it moves, it is farther from what it was: 1 less the distance; 1 where nothing is changed."""
    if ran.task != "landmarks":
        pytest.skip("a word has a probability")
    network, images = trained(ran)
    near = _asks(ran.job, Asked(ran.job, lambda: network), images, np.full(4, 3))[0](images.numpy())
    answers = predict(network, images)[:, 3].double()
    wanted = [max(0.0, 1 - abs(answers[i].item() - answers[0].item())) for i in range(4)]
    assert near == pytest.approx(wanted)
    assert near[0] == 1


class Halves(Captioner):
    """Says word 1 the surer the brighter an image's left half is, then word 2 by the right, then the end.

    Its logits are the half's mean for the word of the step, 0 for all others; 9 for the end.
    """

    def __init__(self) -> None:
        super().__init__(nn.Identity(), vocabulary=4, length=3, hidden=1)

    def _features(self, images):
        return torch.stack([half.mean((1, 2, 3)) for half in images.chunk(2, dim=3)], dim=1)

    def _step(self, features, state, words):
        logits = features.new_zeros(len(features), 4)
        for word, step in enumerate([words == 0, words == 1], start=1):
            logits[:, word] = torch.where(step, features[:, word - 1], 0)
        logits[:, 0] = torch.where(words == 2, 9, 0)
        return state, logits


def test_what_the_removal_of_pixels_does_to_a_word(ran):
    """In closed form, e^a / (e^a + 3) with the brightness a of its own half; the other half is as nothing."""
    if ran.task != "captions":
        pytest.skip("a coordinate has no probability")
    image = torch.full((1, 3, 4, 4), 2.0)
    changed = image.repeat(3, 1, 1, 1)
    changed[0, ..., 2:], changed[1, ..., 0], changed[2] = 0, 0, 0  # right half, left quarter, everything
    asks = _asks(ran.job, Asked(ran.job, Halves), image.repeat(3, 1, 1, 1), np.array([1, 2, 0]))
    left, right, end = (ask(changed.numpy()) for ask in asks)
    assert left == pytest.approx([np.exp(a) / (np.exp(a) + 3) for a in (2, 1, 0)])
    assert right == pytest.approx([np.exp(a) / (np.exp(a) + 3) for a in (0, 2, 0)])
    assert end == pytest.approx([np.exp(9) / (np.exp(9) + 3)] * 3)


def test_a_words_probability_is_that_of_the_step_of_its_score(ran):
    """Word by word: the step with the largest logit, and the softmax there, behind the caption's words."""
    if ran.task != "captions":
        pytest.skip("a coordinate has no steps")
    network, images = trained(ran)
    asks = _asks(ran.job, Asked(ran.job, lambda: network), images, np.array([1, 5, 0, 9]))
    for image, word, ask in zip(images, (1, 5, 0, 9), asks, strict=True):
        (caption,) = network.describe(image[None]).tolist()
        length = caption.index(0) + 1 if 0 in caption else len(caption)
        with torch.no_grad():
            whole = network(image[None], torch.tensor([caption]))[0, :length]
            step = max(range(length), key=lambda t: whole[t, word].item())
            said = [network(x[None], torch.tensor([caption]))[0, step].softmax(0)[word] for x in images]
        assert whole[step, word].item() == pytest.approx(predict(network, image[None])[0, word].item())
        assert ask(images.numpy()) == pytest.approx(np.array(said), rel=1e-4)


def test_targets_of_one_image_ask_the_network_once(ran):
    """Ten coordinates of a face, or the words of a scene, see the same regions removed, in whatever order."""
    network, images = trained(ran)
    images = torch.stack([images[0], images[0].flip(-1)] * 2)  # two images, with two targets each
    targets, one = np.array([1, 1, 2, 2]), [images[i : i + 1].numpy() for i in range(4)]
    alone = [_asks(ran.job, Asked(ran.job, lambda: network), images, targets)[i](one[i]) for i in range(4)]
    asks, asked = _asks(ran.job, Asked(ran.job, lambda: network), images, targets), []
    network.register_forward_hook(lambda *_: asked.append(True))
    together = [ask(image.copy()) for ask, image in zip(asks, one, strict=True)]
    np.testing.assert_array_equal(together, alone)
    assert len(asked) == 2


def trained(ran):
    """Return the run's first network and four images to ask it about."""
    (block,) = ran.job.blocks("score")
    model = ran.job.benchmark.models[0]
    network = load_network(ran.job, Subject(model, 0, ran.job.weights(model, 0)))
    return network, Samples(ran.job).images(block)[:4]
