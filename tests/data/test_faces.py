import hashlib

import numpy as np
import pytest

from lapbench.data import describe, load_manifest, open_dataset
from lapbench.data.faces import LANDMARKS, compose, draw, read_faces

GOLDEN = {
    "train-000000": "f0f85ceb473947237762902c94cc0f8699ae4071e117e67a8903360d077753be",
    "train-000001": "bcc364e6311182bbe9bbd25a1cee4f6edbe176881ac074c394bff3aad098b4ad",
    "val-000042": "afc6a55bd22e9134a7119d6c0807903a5ca5551df057638888833dab7e6fb91b",
    "test-000199": "5755b5187c9b1698cfc630ad012a406c35017c643357f8925e581f69fa3a03f4",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_those_of_every_machine(name):
    """If this fails, images have changed: raise faces.VERSION and the version of the manifest."""
    assert hashlib.sha256(draw(name, 64).tobytes()).hexdigest() == GOLDEN[name]


def test_landmarks_lie_where_they_are_drawn():
    """The pupil is darker than the white beside it, the nose darker than the skin, the mouth less green."""
    for number in range(60):
        face, image = compose(f"train-{number:06d}", 256), draw(f"train-{number:06d}", 256).astype(float)

        def around(u, v, face=face, image=image):
            """The mean colour of 7×7 pixels at a place in face coordinates."""
            x = face.x + face.radius * (face.cosine * u - face.sine * v)
            y = face.y + face.radius * (face.sine * u + face.cosine * v)
            return image[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].mean((0, 1))

        for side, point in zip((-1, 1), face.points, strict=False):
            u, v = face.turn + side * face.eyes[0], face.eyes[1]
            x, y = (round(at) for at in point)
            pupil = image[y - 3 : y + 4, x - 3 : x + 4].mean((0, 1))
            np.testing.assert_allclose(pupil, around(u, v), atol=20)
            assert pupil.sum() < around(u + 0.16, v).sum() - 100
        assert around(1.25 * face.turn, face.nose).sum() < around(face.turn, face.eyes[1] - 0.45).sum() - 30


def test_points_follow_place_size_and_tilt():
    """Seen from its centre, untilted and in half widths, every face has the places that it was given."""
    for number in range(50):
        face = compose(f"val-{number:06d}", 64)
        assert face.cosine**2 + face.sine**2 == pytest.approx(1)
        points = (np.array(face.points) - (face.x, face.y)) / face.radius
        turned = points @ np.array([[face.cosine, -face.sine], [face.sine, face.cosine]])
        assert turned[:, 1] == pytest.approx([face.eyes[1]] * 2 + [face.nose] + [face.mouth[1]] * 2)
        assert turned[1, 0] - turned[0, 0] == pytest.approx(2 * face.eyes[0])
        assert turned[4, 0] - turned[3, 0] == pytest.approx(2 * face.mouth[0])


def test_every_target_of_a_face_that_is_scored_is_a_sample():
    records = read_faces(None, train=20, val=1, test=2, canvas=64)
    assert [r.split for r in records] == ["train"] * 20 + ["val"] * 10 + ["test"] * 20
    assert {r.label for r in records[:20]} == {f"{name}_{axis}" for name in LANDMARKS for axis in "xy"}
    scored = records[20:30]
    assert [r.id for r in scored[:3]] == [f"val-000000/left_eye_{a}" for a in "xy"] + [
        "val-000000/right_eye_x"
    ]
    assert {r.group for r in scored} == {"val-000000"}
    for place, record in enumerate(scored):
        x, y = record.answer[place // 2 * 2 : place // 2 * 2 + 2]
        (box,) = record.boxes
        assert ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) == pytest.approx((x, y))
        assert (box.width, box.height) == pytest.approx([0.4 * compose("val-000000", 64).radius] * 2)


def test_the_shipped_data_set():
    dataset = open_dataset(load_manifest("faces"), image_size=(32, 64), limit=60)
    assert (dataset.task, dataset.answer_size) == ("landmarks", 10)
    split = dataset["test"]
    assert split.answers.shape == (60, 10)
    assert split.answers.dtype == np.float32
    assert ((split.answers > 0) & (split.answers < 1)).all()
    assert split.has_truth.all()
    assert describe(dataset).splits["test"].per_class["nose_x"] == 6
    images = split.by_image()
    assert len(set(images.ids)) == len(images) == len({name.partition("/")[0] for name in split.ids})
    for index in range(5):  # fractions and boxes agree, whatever the image's size
        (box,) = split.boxes(index)
        point = split.answers[index].reshape(5, 2)[split.labels[index] // 2] * (64, 32)
        assert ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) == pytest.approx(tuple(point), abs=1e-4)
