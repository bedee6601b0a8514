import numpy as np
import pytest
from pydantic import ValidationError

from lapbench.benchmark import NO_NETWORK, Claim, Term
from lapbench.report.claims import (
    COLUMNS,
    ClaimResults,
    Found,
    cells,
    compare_spread,
    judge_claim,
    render_claims,
)
from lapbench.report.comparison import compare
from lapbench.report.results import read_record, write_record

A, B, C = (Term(model=name) for name in "abc")
N = 80
IDS = tuple(f"image-{n}" for n in range(N))


def scores(mean, seed, trainings=1):
    """Scores of images that share what makes them hard."""
    hard = np.random.default_rng(0).normal(size=N)
    own = np.random.default_rng(seed).normal(size=(trainings, N))
    return Found(mean + 0.1 * hard + 0.02 * (own - own.mean()), IDS)


def verdict(*means, margin=None, trainings=1):
    others = [scores(mean, 10 + n, trainings) for n, mean in enumerate(means[1:])]
    claim = Claim(id="x", says="a is best", higher=A, than=(B, C)[: len(others)], margin=margin)
    ours = scores(means[0], 1, trainings)
    return judge_claim(claim, [(ours, other) for other in others])


@pytest.mark.parametrize(
    ("means", "margin", "wanted"),
    [
        ((0.6, 0.5, 0.55), None, "holds"),
        ((0.6, 0.5, 0.6), None, "not decidable"),  # as good as one of them
        ((0.6, 0.5, 0.65), None, "does not hold"),
        ((0.6, 0.6), 0.02, "holds"),  # not lower by so much
        ((0.6, 0.62), 0.02, "not decidable"),  # just at the margin
        ((0.6, 0.65), 0.02, "does not hold"),
    ],
)
def test_a_claim_holds_or_not_or_cannot_be_decided(means, margin, wanted):
    assert verdict(*means, margin=margin).verdict == wanted
    assert verdict(*means, margin=margin, trainings=3).verdict == wanted


def test_the_numbers_are_those_of_the_paired_comparison():
    ours, theirs = scores(0.6, 1, 3), scores(0.55, 2, 3)
    found = compare(ours.scores, theirs.scores)
    (part,) = judge_claim(Claim(id="x", says="y", higher=A, than=(B,)), [(ours, theirs)]).parts

    assert (part.difference, part.low, part.high) == (found.difference, found.low, found.high)
    assert (part.n, part.trainings) == (N, 3)
    assert part.difference == pytest.approx(0.05)


def test_a_control_has_no_trainings_to_count():
    """Nothing was trained for it; what is claimed of a network beside it speaks of that one's trainings."""
    control = Term(model=NO_NETWORK, explainer="Centre")
    for claim in (
        Claim(id="x", says="y", higher=A, than=(control,)),
        Claim(id="x", says="y", higher=control, than=(A,)),
    ):
        pairs = [tuple(scores(0.5, 2, 3 if term == A else 1) for term in pair) for pair in claim.pairs]
        assert judge_claim(claim, pairs).parts[0].trainings == 3
    both = Claim(id="x", says="y", higher=control, than=(Term(model=NO_NETWORK, explainer="Random"),))
    assert judge_claim(both, [(scores(0.5, 2), scores(0.4, 3))]).parts[0].trainings == 1


def test_images_are_matched_by_their_ids_and_not_by_their_places():
    ours, theirs = scores(0.6, 1), scores(0.6, 1)
    order = np.random.default_rng(5).permutation(N)[: N // 2]
    shuffled = Found(theirs.scores[:, order] - 0.01, tuple(IDS[place] for place in order))

    (part,) = judge_claim(Claim(id="x", says="y", higher=A, than=(B,)), [(ours, shuffled)]).parts

    assert part.n == N // 2
    assert part.difference == pytest.approx(0.01) == part.low == part.high


def test_what_rises_is_compared_step_by_step():
    claim = Claim(id="x", says="rises", rising=(A, B, C))
    assert claim.pairs == ((B, A), (C, B))
    steps = {term: scores(mean, n) for n, (term, mean) in enumerate(((A, 0.5), (B, 0.6), (C, 0.55)))}

    found = judge_claim(claim, [(steps[upper], steps[lower]) for upper, lower in claim.pairs])

    assert found.verdict == "does not hold"
    assert (found.weakest.ours, found.weakest.theirs) == (C.text, B.text)


def test_what_is_missing_decides_nothing_and_says_why():
    claim = Claim(id="x", says="y", higher=A, than=(B, C))
    missing = Found(reason="b was not asked yet")

    found = judge_claim(claim, [(scores(0.6, 1), missing), (scores(0.6, 1), scores(0.5, 2))])
    assert found.verdict == "not decidable"
    assert cells(found)[3] == "b was not asked yet" and found.parts[1].low > 0

    lost = judge_claim(claim, [(scores(0.6, 1), missing), (scores(0.6, 1), scores(0.7, 2))])
    assert lost.verdict == "does not hold"  # whatever the missing one says

    one = [Found(np.array([[mean]]), ("image-0",)) for mean in (0.6, 0.5)]
    (part,) = judge_claim(Claim(id="x", says="y", higher=A, than=(B,)), [(one[0], one[1])]).parts
    assert (part.n, part.low, part.text) == (1, None, "one image alone has no interval")

    apart = Found(scores(0.5, 2).scores, tuple(f"other-{n}" for n in range(N)))
    alone = judge_claim(Claim(id="x", says="y", higher=A, than=(B,)), [(scores(0.6, 1), apart)])
    assert alone.parts[0].reason == "the two have no image in common that both score"


def test_only_images_that_both_score_are_compared():
    """An image that one lacks a score of (NaN) counts for neither, also where spreads are compared."""
    ours, theirs = scores(0.6, 1, 3), scores(0.5, 2, 3)
    spoilt = ours.scores.copy()
    spoilt[1, 7] = np.nan
    left = [place for place in range(N) if place != 7]
    ids = tuple(IDS[place] for place in left)
    for claim in (
        Claim(id="x", says="y", higher=A, than=(B,)),
        Claim(id="x", says="y", steadier=A, than=(B,)),
    ):
        found = judge_claim(claim, [(Found(spoilt, IDS), theirs)])
        without = [(Found(ours.scores[:, left], ids), Found(theirs.scores[:, left], ids))]
        assert found == judge_claim(claim, without)
        assert found.parts[0].n == N - 1
        none = judge_claim(claim, [(Found(np.full((3, N), np.nan), IDS), theirs)])
        assert none.verdict == "not decidable" and "both score" in none.parts[0].reason


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_few_images_of_one_training_seldom_decide_by_chance(n):
    """Of 200 claims on equal means at most 5 % hold, and as many are contradicted (two standard errors)."""
    random = np.random.default_rng(n)
    claim = Claim(id="x", says="y", higher=A, than=(B,))
    said = [
        judge_claim(
            claim, [tuple(Found(random.normal(size=(1, n)), IDS[:n]) for _ in range(2))], resamples=299
        ).verdict
        for _ in range(200)
    ]
    assert said.count("holds") <= 16 and said.count("does not hold") <= 16


def test_five_equal_rows_are_rarely_said_to_contradict_a_claim():
    """The correction for the number of parts: of 100 claims on equal means, at most 5 % are contradicted."""
    random = np.random.default_rng(3)
    terms = tuple(Term(model=f"m{n}") for n in range(5))
    claim = Claim(id="x", says="y", higher=A, than=terms)
    said = []
    for _ in range(100):
        tables = [Found(random.normal(size=(1, 40)), IDS[:40]) for _ in range(6)]
        said.append(judge_claim(claim, [(tables[0], other) for other in tables[1:]], resamples=199).verdict)
    assert said.count("does not hold") <= 9  # 5 % of 100, and two standard errors
    assert said.count("holds") <= 9


def trained(spread, seed, trainings):
    """Scores of trainings whose means differ by about the spread."""
    random = np.random.default_rng(seed)
    return Found(0.5 + spread * random.normal(size=(trainings, 1)) + 0.02 * random.normal(size=(1, N)), IDS)


@pytest.mark.parametrize(
    ("spreads", "trainings", "wanted"),
    [
        ((0.01, 0.1), 8, "holds"),
        ((0.1, 0.01), 8, "does not hold"),
        ((0.05, 0.05), 8, "not decidable"),
        ((0.01, 0.05), 2, "not decidable"),  # two trainings say next to nothing of a spread
        ((0.01, 0.1), 1, "not decidable"),
    ],
)
def test_a_model_is_steadier_where_its_trainings_differ_less(spreads, trainings, wanted):
    claim = Claim(id="x", says="a is steadier", steadier=A, than=(B,))
    pair = tuple(trained(spread, seed, trainings) for seed, spread in enumerate(spreads))
    found = judge_claim(claim, [pair])
    (part,) = found.parts

    assert found.verdict == wanted
    if trainings == 1:
        assert part.text == "two trainings of each are the least"
    else:
        deviations = [np.std(one.scores.mean(1), ddof=1) for one in pair]
        assert part.difference == pytest.approx(np.log2(deviations[1] / deviations[0]))


def test_the_interval_of_steadiness_covers_as_often_as_it_says():
    """Equal spreads: zero lies in about 95 of 100 intervals, by the exact test for normal means."""
    random = np.random.default_rng(0)
    found = [compare_spread(*random.normal(size=(2, 3, 1))) for _ in range(2000)]

    covered = np.mean([low < 0 < high for _, low, high in found])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"higher": A},
        {"than": (B,)},
        {"rising": (A,)},
        {"higher": A, "than": (B,), "rising": (A, B)},
        {"higher": A, "rising": (A, B)},
        {"higher": A, "than": (B,), "margin": 0.0},
        {"higher": A, "steadier": A, "than": (B,)},
        {"steadier": A, "than": (B,), "margin": 0.1},
    ],
)
def test_a_claim_has_one_form(faults):
    with pytest.raises(ValidationError):
        Claim(id="x", says="y", **faults)


def test_claims_are_written_and_read_again(tmp_path):
    results = ClaimResults(
        benchmark="b", benchmark_version=1, claims=(verdict(0.6, 0.5, 0.55, margin=0.01),), provenance={}
    )
    write_record(tmp_path / "claims.json", results)
    page = render_claims(results)

    assert read_record(tmp_path / "claims.json", ClaimResults) == results
    assert "| x | holds | a is best (margin 0.01) | +0.0" in page
    assert "## x: holds" in page and "| accuracy of a | accuracy of c | +0.0" in page
    assert len(cells(results.claims[0])) == len(COLUMNS)
