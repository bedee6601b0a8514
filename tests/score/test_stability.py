import numpy as np
import pytest
import torch

from lapbench.errors import ScoreError
from lapbench.score.stability import perturb, stability


def turns(images, radius, n):
    return [perturb(images, radius, [(i, turn) for i in range(len(images))]) for turn in range(n)]


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_map_that_is_a_multiple_of_the_image_moves_by_that_factor(factor):
    images = np.random.default_rng(0).standard_normal((4, 1, 6, 5)).astype(np.float32)

    found = stability(lambda x: factor * x[:, 0], images, factor * images[:, 0], turns(images, 0.1, 3))

    assert found["local_lipschitz"] == pytest.approx([factor] * 4, rel=1e-5)


def test_both_equal_a_loop_and_the_second_is_captums():
    from captum.metrics import sensitivity_max

    images = np.random.default_rng(1).standard_normal((3, 2, 4, 4)).astype(np.float32)

    def explain(x):
        return np.tanh(x).sum(axis=1) ** 2

    maps, near = explain(images), turns(images, 0.2, 5)
    found = stability(explain, images, maps, iter(near))

    for i in range(3):
        steps = [np.linalg.norm(explain(x)[i] - maps[i]) for x in near]
        ways = [np.linalg.norm(x[i] - images[i]) for x in near]
        slopes = [step / way for step, way in zip(steps, ways, strict=True)]
        assert found["local_lipschitz"][i] == pytest.approx(max(slopes), rel=1e-5)
        assert found["max_sensitivity"][i] == pytest.approx(max(steps) / np.linalg.norm(maps[i]), rel=1e-5)

    def captums_explain(x):  # asked with a tuple first, and then with what the noise returns
        return (torch.from_numpy(explain((x[0] if isinstance(x, tuple) else x).numpy())),)

    captums = [
        sensitivity_max(
            captums_explain,
            torch.from_numpy(images),
            perturb_func=lambda _inputs, _radius, x=x: torch.from_numpy(x),
            n_perturb_samples=1,
        ).numpy()
        for x in near
    ]
    assert found["max_sensitivity"] == pytest.approx(np.max(captums, axis=0), rel=1e-4)


def test_a_constant_explainer_is_perfectly_stable_and_a_map_of_zeros_has_no_sensitivity():
    images = np.zeros((2, 1, 3, 3), np.float32)
    maps = np.stack([np.ones((3, 3)), np.zeros((3, 3))]).astype(np.float32)

    found = stability(lambda _: maps, images, maps, turns(images, 0.1, 2))

    assert found["local_lipschitz"].tolist() == [0, 0]
    assert found["max_sensitivity"][0] == 0 and np.isnan(found["max_sensitivity"][1])


def test_noise_is_uniform_within_the_radius_and_the_same_for_a_seed():
    images = np.zeros((2, 3, 40, 40), np.float32)
    near = perturb(images, 0.5, [(7, 0), (8, 0)])

    assert np.abs(near).max() <= 0.5 and near.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.03)
    assert np.array_equal(near[1:], perturb(images[1:], 0.5, [(8, 0)]))  # whatever else is in the batch
    assert not np.array_equal(near[0], near[1])


def test_no_image_has_no_stability():
    images, maps = np.zeros((0, 1, 4, 4), np.float32), np.ones((0, 4, 4), np.float32)
    found = stability(lambda _: maps, images, maps, [images])
    assert {name: scores.shape for name, scores in found.items()} == {
        "local_lipschitz": (0,),
        "max_sensitivity": (0,),
    }


def test_maps_of_another_shape_are_refused():
    images, maps = np.zeros((1, 1, 4, 4), np.float32), np.ones((1, 4, 4), np.float32)
    with pytest.raises(ScoreError, match=r"must be \(1, 4, 4\), found \(1, 2, 2\)"):
        stability(lambda _: maps[:, :2, :2], images, maps, turns(images, 0.1, 1))
