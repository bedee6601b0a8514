"""Stage 4: the leaderboard, the scores of every image beside it, and the pictures."""

from importlib.metadata import version
from typing import Any

from lapbench import __version__
from lapbench.digest import digest_of, digest_of_code, digest_of_file, plain
from lapbench.errors import ResultError
from lapbench.pipeline.classification import summarise
from lapbench.pipeline.job import Job, pretrained_identity
from lapbench.pipeline.measures import randomisation_drops
from lapbench.pipeline.pictures import draw_pictures
from lapbench.pipeline.scoring import scored_rows
from lapbench.report import (
    Estimate,
    ImageScores,
    Leaderboard,
    ModelSummary,
    Row,
    read_leaderboard,
    write_report,
)
from lapbench.report.results import RowKey


def report(job: Job) -> Leaderboard:
    """Write the leaderboard and its pictures from the rows that are there, and return it, ranked."""
    leaderboard, images = assemble(job)
    _spare(job, leaderboard)
    written = write_report(job.workspace.out, leaderboard, images)
    draw_pictures(job, written)
    return written


def shown(job: Job) -> Leaderboard:
    """Return the leaderboard that is in the report folder, to be shown; it is written only if there is none.

    Errors: ResultError where it holds other results than the rows that are there.
    """
    path = job.workspace.out / "leaderboard.json"
    if not path.is_file():
        return report(job)
    written, (found, _) = read_leaderboard(path), assemble(job)
    then, now = ({row.key: (row.mean, row.n) for row in board.rows} for board in (written, found))
    if then != now:
        moved = sum(then.get(key) != now.get(key) for key in {*then, *now})
        raise ResultError(
            f"{path}: {moved} rows are not those that {job.workspace.cache} has for these options: give the "
            "options of the run that wrote it (--limit, --models, --explainers, --seed, --cache), name "
            "another folder (--out), or replace it with `lapbench report`"
        )
    return written


def assemble(job: Job) -> tuple[Leaderboard, dict[RowKey, ImageScores]]:
    """Put together the leaderboard from the rows that are there, and their scores by image; write nothing."""
    models = {model.name: summarise(job, model) for model in job.benchmark.models}
    found = [scored for row in job.rows() for scored in scored_rows(job, row)]
    drops = randomisation_drops(found, job.benchmark.protocol)
    leaderboard = Leaderboard(
        benchmark=job.benchmark.name,
        benchmark_version=job.benchmark.version,
        title=job.benchmark.title,
        confidence=job.benchmark.protocol.confidence,
        models=tuple(models.values()),
        rows=tuple(_finished(scored.row, models, drops.get(scored.row.key)) for scored in found),
        provenance=shared_provenance(job),
    )
    return leaderboard, {scored.row.key: scored.images for scored in found if scored.images is not None}


def _spare(job: Job, found: Leaderboard) -> None:
    """Raise ResultError where a report with scores would give way to one of another cache, without any."""
    path = job.workspace.out / "leaderboard.json"
    if any(row.complete for row in found.rows) or not path.is_file():
        return
    complete = sum(row.complete for row in read_leaderboard(path).rows)
    if complete:
        raise ResultError(
            f"{path}: {complete} rows are complete there, and {job.workspace.cache} has the scores of none: "
            "name the cache that the report came from (--cache), or another folder (--out)"
        )


def _finished(row: Row, models: dict[str, ModelSummary], drop: Estimate | None) -> Row:
    """Let a row say what its model can do, and what it loses on random weights (drop) where that is known."""
    update = dict[str, Any]()
    if row.model in models and not row.randomised:
        update["model_accuracy"] = models[row.model].accuracy
    if drop is not None:
        update["measures"] = {**row.measures, "randomisation_drop": drop}
    return row.model_copy(update=update)


def shared_provenance(job: Job) -> dict[str, Any]:
    """What all rows of a benchmark share: definition, data, protocol and versions, with the code's digest."""
    dataset = job.dataset
    left_out = {"boxes_outside": dataset.n_outside} if dataset.n_outside else {}
    return {
        "definition": digest_of(_placeless(job)),
        "data": {"name": dataset.name, "version": dataset.version, "digest": dataset.digest, **left_out},
        "protocol": plain(job.benchmark.protocol),
        "limit": job.workspace.limit,
        "versions": {
            "lapbench": __version__,
            "code": digest_of_code(),
            **{name: version(name) for name in ("torch", "captum", "scikit-learn", "scipy", "numpy")},
        },
    }


def _placeless(job: Job) -> dict[str, Any]:
    """The definition without the folders of its files: digests stand for what is in them."""
    found: dict[str, Any] = plain(job.benchmark)
    found["data"]["manifest"] = job.dataset.digest
    for table, model in zip(found["models"], job.benchmark.models, strict=True):
        if model.weights is not None:  # claims are judged although some are not there
            table["weights"] = digest_of_file(model.weights) if model.weights.is_file() else None
        if model.recipe is not None:
            table["recipe"]["pretrained"] = pretrained_identity(model)
    return found
