import numpy as np
import pytest
import torch

from lapbench.benchmark import Augment
from lapbench.train.augment import augment
from lapbench.train.batches import uniform
from lapbench.train.images import Batch

N, H, W = 64, 9, 12


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    images, masks = torch.rand(N, 3, H, W), torch.zeros(N, H, W, dtype=torch.bool)
    boxes = torch.full((N, 2, 4), torch.nan)
    rng = np.random.default_rng(0)
    for i in range(N):
        x, y = rng.integers(0, W - 3), rng.integers(0, H - 4)
        masks[i, y : y + 4, x : x + 3] = True
        boxes[i, 0] = torch.tensor([x, y, x + 3, y + 4])
    return Batch(images, torch.arange(N) % 2, masks, boxes)


def run(batch: Batch, **settings) -> Batch:
    return augment(batch, Augment(**settings), seed=3, epoch=5, positions=np.arange(100, 100 + N))


def drawn(stream: int) -> list[float]:
    return uniform(3, 5, np.arange(100, 100 + N), stream).tolist()


def slowly(image: np.ndarray, flips: tuple[bool, bool], down: int, right: int, fill: str) -> np.ndarray:
    """Flip by numpy, pad, and cut the shifted window."""
    image = image[::-1] if flips[0] else image
    image = image[:, ::-1] if flips[1] else image
    reach = max(H, W)
    padded = np.pad(image, reach, mode=fill)
    return padded[reach - down : reach - down + H, reach - right : reach - right + W]


def test_nothing_asked_is_nothing_done(batch):
    assert run(batch) is batch


@pytest.mark.parametrize("vertical", [True, False])
@pytest.mark.parametrize("horizontal", [True, False])
@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_flips_and_shifts_move_images_and_masks_alike(batch, vertical, horizontal, shift):
    result = run(batch, vertical_flip=vertical, horizontal_flip=horizontal, shift=shift)
    most = (int(shift * H), int(shift * W))
    moves = set()
    for i in range(N):
        flips = vertical and drawn(0)[i] < 0.5, horizontal and drawn(1)[i] < 0.5
        down, right = (int(drawn(2 + a)[i] * (2 * most[a] + 1)) - most[a] for a in (0, 1))
        moves.add((flips, down, right))
        for c in range(3):
            expected = slowly(batch.images[i, c].numpy(), flips, down, right, "edge")
            assert np.array_equal(result.images[i, c].numpy(), expected)
        expected = slowly(batch.masks[i].numpy(), flips, down, right, "constant")
        assert np.array_equal(result.masks[i].numpy(), expected)
    assert len(moves) > (30 if shift else vertical + horizontal), "the draws differ"


def test_boxes_stay_around_their_masks(batch):
    result = run(batch, vertical_flip=True, horizontal_flip=True, shift=0.9)
    lost = 0
    for mask, boxes in zip(result.masks, result.boxes, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows) == 0:
            assert boxes.isnan().all()
            lost += 1
        else:
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert boxes[0].tolist() == [float(v) for v in tight]
            assert boxes[1].isnan().all()
    assert 0 < lost < N


def test_brightness_multiplies_and_stays_in_range(batch):
    result = run(batch, brightness=0.5)
    factors = torch.tensor([0.5 + value for value in drawn(4)]).float()[:, None, None, None]
    assert torch.allclose(result.images, (batch.images * factors).clamp(0, 1), atol=1e-6)
    assert torch.equal(result.masks, batch.masks)
    assert result.boxes.nan_to_num(-1).equal(batch.boxes.nan_to_num(-1))


def test_a_sample_is_changed_alike_in_any_batch(batch):
    settings = Augment(horizontal_flip=True, shift=0.3, brightness=0.2)
    whole = augment(batch, settings, seed=0, epoch=0, positions=np.arange(N))
    odd = Batch(*(None if v is None else v[1::2] for v in batch))
    half = augment(odd, settings, seed=0, epoch=0, positions=np.arange(N)[1::2])
    assert torch.equal(whole.images[1::2], half.images)
    assert not torch.equal(
        whole.images, augment(batch, settings, seed=0, epoch=1, positions=np.arange(N)).images
    )


def test_images_without_truth(batch):
    result = run(batch._replace(masks=None, boxes=None), horizontal_flip=True, shift=0.1)
    assert result.masks is None
    assert result.boxes is None


def test_landmarks_are_shifted_with_their_images(batch):
    """A bright pixel at the landmark is found where the shifted coordinates say, if it is still there."""
    settings, size = Augment(shift=0.3), batch.images.shape[2:]
    images, points = torch.zeros_like(batch.images), torch.randint(2, 6, (len(batch.images), 2))
    images[torch.arange(len(images)), :, points[:, 1], points[:, 0]] = 1
    answers = (points + 0.5) / torch.tensor([size[1], size[0]])
    before = batch._replace(images=images, answers=answers)
    found = augment(before, settings, seed=1, epoch=0, positions=np.arange(len(images)), task="landmarks")
    moved = 0
    for image, (x, y), (old_x, old_y) in zip(found.images, found.answers, answers, strict=True):
        column, row = x * size[1] - 0.5, y * size[0] - 0.5
        if 0 <= column <= size[1] - 1 and 0 <= row <= size[0] - 1:
            assert image[0, round(row.item()), round(column.item())] == 1
            moved += (x, y) != (old_x, old_y)
    assert moved > 0
    captions = augment(before, settings, seed=1, epoch=0, positions=np.arange(len(images)), task="captions")
    assert torch.equal(captions.answers, answers)
