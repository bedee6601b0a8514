"""What a network reads in the concepts of a LAP network with one head a class."""

import numpy as np
import pytest

from lapbench import pipeline
from lapbench.errors import DefinitionError
from lapbench.pipeline import answering
from lapbench.report.results import read_leaderboard
from lapbench.score.predictivity import learn_to_read
from pipeline import tiny

DEFINITION = tiny.with_explainers(
    tiny.without_models(tiny.DEFINITION, "plain").replace(
        tiny.DEFINITION[tiny.DEFINITION.index("[models.plug]") : tiny.DEFINITION.index("[models.recipe]")],
        '[models.concept_mlp]\nhidden = 16\n\n[models.plug]\naggregation = "sum"\neach_class = {}\n\n',
    ),
    "lap_all",
    "random",
)


@pytest.mark.parametrize("target", ["truth", "each"])
def test_concepts_are_read_by_networks_that_learned_on_the_training_split(target, tmp_path, monkeypatch):
    text = DEFINITION.replace("hidden = 16", f'hidden = 16\ntarget = "{target}"')
    job = tiny.job(tiny.write_definition(tmp_path, text=text), tmp_path)
    pipeline.run(job)
    (model,) = read_leaderboard(job.workspace.out / "leaderboard.json").models

    (subject,) = (s for s in job.subjects() if not s.randomised)
    taught, asked = (answering.read_answers(job, subject, purpose) for purpose in ("train", "score"))
    labels, said = job.dataset["train"].labels, asked["logits"].argmax(1)
    assert len(taught["logits"]) == 48 and len(model.laps) == len(model.laps_read) == 4
    for layer, lap in enumerate(model.laps_read):

        def read(lessons, layer=layer):
            sums, unseen = taught["sums"][:, layer], asked["sums"][:, layer]
            return learn_to_read(sums, lessons, unseen, n_classes=2, hidden=16).argmax(1)

        by_truth = read(labels)
        by_network = by_truth if target == "truth" else read(taught["logits"].argmax(1))
        assert lap.predictivity.mean == pytest.approx(np.mean(by_truth == job.dataset["test"].labels))
        assert lap.faithfulness.mean == pytest.approx(np.mean(by_network == said))

    monkeypatch.setattr(answering, "learn_to_read", None)  # whoever asks again reads what is stored
    pipeline.run(job)
    assert read_leaderboard(job.workspace.out / "leaderboard.json").models == (model,)


def test_a_plain_network_has_no_concepts_to_read(tmp_path):
    text = tiny.DEFINITION.replace('name = "plain"', 'name = "plain"\nconcept_mlp = {}')
    with pytest.raises(
        DefinitionError, match=r"concept_mlp reads the concepts of LAPs: it needs \[models.pl"
    ):
        tiny.job(tiny.write_definition(tmp_path, text=text), tmp_path)
