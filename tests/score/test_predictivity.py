import numpy as np
import pytest

from lapbench.score.predictivity import correctness, learn_to_read, stand_alone


def brute(peaks, sums, heads, n_classes):
    """The rules of the paper, one image and one LAP at a time."""
    said = np.zeros(peaks.shape[:2], int)
    for image in range(peaks.shape[0]):
        for lap in range(peaks.shape[1]):
            if len([h for h in heads if h]) == 1:
                (head,) = [n for n, h in enumerate(heads) if h]
                (present,) = heads[head]
                found = peaks[image, lap, head] > 0.5
                said[image, lap] = present if found else 1 - present
            else:
                by_class = {h[0]: sums[image, lap, n] for n, h in enumerate(heads) if h}
                said[image, lap] = max(by_class, key=by_class.get)
    return said


@pytest.mark.parametrize(
    ("heads", "n_classes"),
    [(((1,),), 2), (((0,),), 2), (((1,), ()), 2), (((0,), (1,), ()), 2), (((2,), (0,), (), (1,)), 3)],
)
def test_a_lap_alone_says_what_the_paper_says(heads, n_classes):
    random = np.random.default_rng(0)
    peaks, sums = random.random((40, 4, len(heads))), random.random((40, 4, len(heads))) * 9

    said = stand_alone(peaks, sums, heads, n_classes)

    assert said.shape == (40, 4) and set(said.ravel()) == set(range(n_classes))
    assert np.array_equal(said, brute(peaks, sums, heads, n_classes))


def test_one_half_is_not_active():
    half = np.full((1, 1, 1), 0.5)
    assert stand_alone(half, half, ((1,),), 2) == 0
    assert stand_alone(np.nextafter(half, 1), half, ((1,),), 2) == 1


@pytest.mark.parametrize(
    ("heads", "n_classes"),
    [
        (((1,),), 3),  # nothing names the other two
        (((0, 1), (2,)), 3),  # two classes share a concept
        (((0,), (0,)), 2),  # and nothing names class 1
        (((),), 2),
    ],
)
def test_heads_that_cannot_name_every_class_say_nothing(heads, n_classes):
    some = np.ones((3, 2, len(heads)))
    assert stand_alone(some, some, heads, n_classes) is None


def test_the_means_are_those_of_scikit_learn():
    from sklearn import metrics

    random = np.random.default_rng(1)
    labels, answers = random.integers(0, 2, 60), random.integers(0, 2, (3, 60))
    labels[:40] = 0

    tables = correctness(answers, labels, 2)

    for training, said in enumerate(answers):
        means = {name: np.nanmean(table[training]) for name, table in tables.items()}
        assert means == pytest.approx(
            {
                "accuracy": metrics.accuracy_score(labels, said),
                "balanced_accuracy": metrics.balanced_accuracy_score(labels, said),
                "sensitivity": metrics.recall_score(labels, said),
                "specificity": metrics.recall_score(labels, said, pos_label=0),
            }
        )


def test_of_many_classes_those_that_do_not_occur_do_not_count():
    labels = np.array([0, 0, 0, 2])
    tables = correctness(np.array([[0, 1, 0, 2]]), labels, 4)

    assert set(tables) == {"accuracy", "balanced_accuracy"}
    assert tables["balanced_accuracy"].mean() == pytest.approx((2 / 3 + 1) / 2)


def test_concepts_are_read_as_two_layers_by_hand_would_read_them():
    """The same weights, applied by matrix products to features standardised by hand."""
    from sklearn.neural_network import MLPClassifier

    random = np.random.default_rng(0)
    lessons = random.integers(0, 3, 300)
    sums = (random.standard_normal((300, 5)) + lessons[:, None]) * 40 + 1000
    unseen = random.standard_normal((20, 5)) * 40 + 1000

    read = learn_to_read(sums, lessons, unseen, n_classes=4, hidden=7, seed=3)

    def standard(features):
        return (features - sums.mean(0)) / sums.std(0)

    mlp = MLPClassifier((7,), early_stopping=True, max_iter=1000, random_state=3)
    (first, last), (bias, last_bias) = mlp.fit(standard(sums), lessons).coefs_, mlp.intercepts_
    logits = np.maximum(standard(unseen) @ first + bias, 0) @ last + last_bias
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert read.shape == (20, 4) and not read[:, 3].any()  # nothing was learned of class 3
    assert np.allclose(read[:, :3], expected, atol=1e-6)


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (4, 2), (10, 10), (10, 2), (30, 10)])
def test_few_lessons_are_learned_without_holding_any_back(n, classes):
    random = np.random.default_rng(0)
    lessons = np.arange(n) % classes
    read = learn_to_read(random.random((n, 3)), lessons, random.random((6, 3)), n_classes=classes)
    assert read.shape == (6, classes) and np.allclose(read.sum(1), 1, atol=1e-5)
    certain = learn_to_read(random.random((n, 3)), np.ones(n, int), random.random((6, 3)), n_classes=classes)
    assert np.array_equal(certain, np.eye(classes, dtype=np.float32)[[1] * 6])


def test_two_layers_read_what_the_largest_sum_cannot():
    """Exclusive or: which of two concepts is larger says nothing, but both together say all."""
    random = np.random.default_rng(0)
    signs = random.integers(0, 2, (600, 2))
    sums, lessons = signs + 0.1 * random.standard_normal((600, 2)), signs[:, 0] ^ signs[:, 1]

    read = learn_to_read(sums[:500], lessons[:500], sums[500:], n_classes=2).argmax(1)

    assert (read == lessons[500:]).mean() > 0.95 > (sums[500:].argmax(1) == lessons[500:]).mean() + 0.3
