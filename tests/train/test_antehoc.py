"""A network with ante-hoc maps (reconstruction) trains, is resumed, and goes through a whole benchmark."""

import numpy as np
import pytest
import torch

from lapbench import models, pipeline
from lapbench.benchmark import AnteHoc
from lapbench.models.weighting import antehoc_layers
from lapbench.models.weights import load_record
from lapbench.train import seeded
from lapbench.train.images import normalise, tabulate
from lapbench.train.objective import task_terms
from tests.pipeline import tiny
from train.squares import DATA, network
from train.test_recipe import SQUARES, run

ANTEHOC = """[[models]]
name = "ante-hoc"
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }

[models.antehoc]
gate = "softmax"

[models.recipe]
start = "plain"
epochs = 1
iterations = 3
batch_size = 16
learning_rate = 3e-3

"""


def with_maps(**settings: object) -> torch.nn.Module:
    with seeded(1):
        return models.put_antehoc(network(plugged=False), AnteHoc(**settings))


@torch.no_grad()
def selected_terms(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The terms on the selecting split, in one batch."""
    table = tabulate(SQUARES["val"], truth=False).take(np.arange(len(SQUARES["val"])))
    return task_terms(model, table._replace(images=normalise(table.images, DATA)))[0]


def test_training_learns_by_all_terms_and_says_how_it_went(tmp_path):
    model, record = run(tmp_path, model=with_maps(), plug=None, supervision="none", epochs=2)

    (layer,) = antehoc_layers(model).values()
    assert layer.maps is None
    weights = {"cross_entropy": 1, "masked_cross_entropy": 1, "map_area": 0.01}
    for epoch in record.epochs:
        total = sum(weight * epoch[f"train_{term}"] for term, weight in weights.items())
        assert epoch["train_loss"] == pytest.approx(total, rel=1e-4)
    evaluated = sum(float(weights[name] * term) for name, term in selected_terms(model).items())
    assert record.epochs[record.best_epoch - 1]["val_loss"] == pytest.approx(evaluated, rel=1e-4)
    before = dict(with_maps().named_parameters())
    assert all(not p.equal(before[name]) for name, p in model.named_parameters() if "weighting" in name)


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path):
    def stop(done, total, text):
        if done > total // 2:
            raise KeyboardInterrupt

    options = {"plug": None, "supervision": "none", "epochs": 2}
    whole, _ = run(tmp_path / "whole", model=with_maps(), **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", model=with_maps(), progress=stop, **options)
    resumed, _ = run(tmp_path / "parts", model=with_maps(), **options)

    assert all(value.equal(whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_another_weight_of_a_term_is_another_training(tmp_path):
    options = {"plug": None, "supervision": "none", "epochs": 1}
    run(tmp_path, model=with_maps(), **options)
    run(tmp_path, model=with_maps(area=0.5), **options)

    assert (tmp_path / "last.ckpt.broken").exists()


def test_the_whole_benchmark_on_digits(tmp_path):
    text = tiny.DEFINITION.replace("[[explainers]]", ANTEHOC + "[[explainers]]", 1)
    text = tiny.without_models(text, "WS-LAP")
    text = tiny.with_explainers(text, "antehoc", "grad_cam", "deeplift", "lrp", "relevance_cam", "cam")
    text = tiny.with_protocol(text, randomised_weights=False)
    job = tiny.job(tiny.write_definition(tmp_path, text=text), tmp_path)
    board = pipeline.run(job)

    rows = {(row.model, row.explainer) for row in board.rows if row.complete}
    assert {row for row in rows if "Ante-hoc" in row[1]} == {("ante-hoc", "Ante-hoc (reconstruction)")}
    assert len({name for model, name in rows if model == "ante-hoc"}) == 6
    (record,) = [load_record(path) for path in (tmp_path / "cache/weights").glob("ante-hoc*.safetensors")]
    assert record["antehoc"] == {"gate": "softmax", "net": "channels", "masked": 1.0, "area": 0.01}
    assert pipeline.run(job).rows == board.rows  # from what is stored
