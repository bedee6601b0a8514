"""The claims of a benchmark, held against what its networks and explainers scored."""

from collections.abc import Mapping

import numpy as np

from lapbench.benchmark import Term
from lapbench.errors import UnknownNameError, WeightsError
from lapbench.pipeline.classification import measures_by_image
from lapbench.pipeline.job import Job
from lapbench.pipeline.other_tasks import measured
from lapbench.pipeline.reporting import shared_provenance
from lapbench.pipeline.rows import ScoredRow
from lapbench.pipeline.scoring import scored_rows
from lapbench.report.claims import ClaimResults, Found, judge_claim, render_claims
from lapbench.report.results import write_file, write_record


def check_claims(job: Job) -> ClaimResults:
    """Hold every claim of the definition against the scores that are there; write claims.json and claims.md.

    Nothing is said of a model that was not trained, and that is the reason of what cannot be decided.
    Errors: UnknownNameError for a measure that neither rows nor models have; WeightsError where not one
    model was trained.
    """
    missing = {subject.model.name: subject.missing for subject in job.subjects() if subject.missing}
    if missing and len(missing) == len(job.benchmark.models):
        raise WeightsError(next(iter(missing.values())))
    terms = {term for claim in job.benchmark.claims for pair in claim.pairs for term in pair}
    wanted = {term.explainer for term in terms}
    rows = {
        scored.row.key: scored
        for row in job.rows()
        if row.explainer.row in wanted and (row.model is None or row.model.name not in missing)
        for scored in scored_rows(job, row)
    }
    found = {
        term: Found(reason=missing[term.model]) if term.model in missing else _scores(job, term, rows)
        for term in terms
    }
    protocol = job.benchmark.protocol
    results = ClaimResults(
        benchmark=job.benchmark.name,
        benchmark_version=job.benchmark.version,
        title=job.benchmark.title,
        confidence=protocol.confidence,
        claims=tuple(
            judge_claim(
                claim,
                [(found[ours], found[theirs]) for ours, theirs in claim.pairs],
                confidence=protocol.confidence,
                resamples=protocol.resamples,
            )
            for claim in job.benchmark.claims
        ),
        provenance=shared_provenance(job),
    )
    write_record(job.workspace.out / "claims.json", results)
    write_file(job.workspace.out / "claims.md", render_claims(results).encode())
    return results


def _scores(job: Job, term: Term, rows: dict[tuple[str, str, str, bool], ScoredRow]) -> Found:
    """The scores of a term by image: of the whole scored split for a model, of those with truth for a row."""
    if term.explainer is None:
        (model,) = (model for model in job.benchmark.models if model.name == term.model)
        tables = measures_by_image(job, model)
        if not tables:
            return Found(reason=f"{term.model} was not asked yet: run `lapbench run` first")
        _known(term, tables)
        ids = job.considered("score").ids
        return Found(tables[term.score], tuple(ids[position] for position in measured(job)))
    scored = rows.get((term.model, term.explainer, term.selection, False))
    if scored is None:
        return Found(reason=f"there is no row {term.text}")
    if scored.images is None:
        return Found(reason=scored.row.reason)
    _known(term, scored.images.scores)
    return Found(np.array(scored.images.scores[term.score], np.float64), scored.images.ids)


def _known(term: Term, scores: Mapping[str, object]) -> None:
    if term.score not in scores:
        raise UnknownNameError(f"measure of {term.explainer or term.model}", term.score, list(scores))
