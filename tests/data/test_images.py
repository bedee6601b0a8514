import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lapbench.data import images
from lapbench.data.images import (
    fit,
    from_bytes,
    read_image,
    read_mask,
    read_resized,
    read_size,
    reduction,
    resize_image,
    resize_mask,
    to_channels,
)
from lapbench.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 9), np.uint8)
COLOUR = RNG.integers(0, 256, (5, 9, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (5, 9), np.uint8)


def save(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def over_white(channel, alpha):
    a = alpha / 255
    return channel / 255 * a + (1 - a)


def test_grey_is_one_channel(tmp_path):
    image = read_image(save(tmp_path, Image.fromarray(GREY)))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, GREY[None] / 255, rtol=1e-6)


def test_colour_is_three_channels_of_height_and_width(tmp_path):
    image = read_image(save(tmp_path, Image.fromarray(COLOUR)))
    np.testing.assert_allclose(image, COLOUR.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_transparent_colour_lies_over_white(tmp_path):
    image = read_image(save(tmp_path, Image.fromarray(np.dstack([COLOUR, ALPHA]))))
    wanted = [over_white(COLOUR[..., c], ALPHA) for c in range(3)]
    np.testing.assert_allclose(image, wanted, atol=1e-6)


def test_transparent_grey_lies_over_white(tmp_path):
    image = read_image(save(tmp_path, Image.fromarray(np.dstack([GREY, ALPHA]))))
    np.testing.assert_allclose(image, over_white(GREY, ALPHA)[None], atol=1e-6)


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray((GREY % 3).astype(np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    wanted = np.eye(3)[GREY % 3].transpose(2, 0, 1)
    np.testing.assert_array_equal(read_image(save(tmp_path, image)), wanted)


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray((GREY % 2).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    read = read_image(save(tmp_path, image, transparency=0))
    assert (read[:, GREY % 2 == 0] == 1).all()
    np.testing.assert_allclose(read[:, GREY % 2 == 1][:, 0], np.array([40, 50, 60]) / 255, rtol=1e-6)


def test_transparent_level_of_grey_is_white(tmp_path):
    read = read_image(save(tmp_path, Image.fromarray((GREY % 2 * 100).astype(np.uint8)), transparency=0))
    np.testing.assert_allclose(read, np.where(GREY % 2 == 0, 1, 100 / 255)[None], rtol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_not_cut_to_eight(tmp_path, name):
    deep = RNG.integers(0, 65536, (5, 9)).astype(np.uint16)
    np.testing.assert_allclose(
        read_image(save(tmp_path, Image.fromarray(deep), name)), deep[None] / 65535, rtol=1e-6
    )


def test_big_endian_sixteen_bits(tmp_path):
    deep = RNG.integers(0, 65536, (5, 9)).astype(">u2")
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 9 5 65535\n" + deep.tobytes())
    np.testing.assert_allclose(read_image(path), deep[None].astype(float) / 65535, rtol=1e-6)


def test_one_bit(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path, Image.fromarray(GREY > 127))), (GREY > 127)[None])


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (9, 5), (0, 255, 255, 0))  # no cyan, no black: red
    read = read_image(save(tmp_path, image, "a.tif"))
    np.testing.assert_array_equal(read[:, 0, 0], [1, 0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_exif_rotation(tmp_path, orientation, name):
    """The displayed image: row and column 0 of the file go where the EXIF standard says."""
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8] = 255  # the corner of row 0 and column 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, Image.fromarray(stored), name, exif=exif)
    image = read_image(path)[0]
    turned = orientation >= 5
    assert image.shape == ((32, 16) if turned else (16, 32)) == read_size(path)
    top = orientation in (1, 2, 5, 6)
    left = orientation in (1, 4, 5, 8)
    corner = image[0 if top else -1, 0 if left else -1]
    assert corner > 0.9
    assert (image > 0.5).sum() == 64


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path, Image.fromarray(GREY.astype(np.float32)), "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: pixels of mode F .* convert the file to 8 or 16 bit"):
        read_image(path)


def png_bytes():
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"not an image at all", "no image that can be read"),
        (png_bytes()[:900], "broken or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that can be read"),
    ],
)
def test_broken_files_are_named_with_the_mend(tmp_path, content, message):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.png: {message}.*: fetch the file again"):
        read_image(path)


def test_missing_file(tmp_path):
    for read in (read_image, read_size, read_mask):
        with pytest.raises(DataError, match=r"none\.png: there is no such image"):
            read(tmp_path / "none.png")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [10_001, 30_000])
def test_a_claimed_size_is_not_trusted(tmp_path, side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )
    for read in (read_image, read_size, read_mask):
        with pytest.raises(DataError, match=r"bomb\.png: .*more than 100,000,000 pixels and is not decoded"):
            read(path)


@settings(max_examples=60)
@given(st.integers(0, 4000), st.integers(0, 255))
def test_flipped_bytes_give_pixels_or_a_data_error(tmp_path_factory, position, value):
    content = bytearray(png_bytes())
    content[position % len(content)] = value
    path = tmp_path_factory.mktemp("fuzz") / "a.png"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(image).all()


def test_channels():
    colour = np.stack([np.full((2, 3), v, np.float32) for v in (1, 0.5, 0.25)])
    np.testing.assert_allclose(to_channels(colour, 1), np.full((1, 2, 3), 0.299 + 0.2935 + 0.0285), rtol=1e-6)
    np.testing.assert_array_equal(to_channels(colour[:1], 3), np.ones((3, 2, 3)))
    assert to_channels(colour, 3) is colour


def test_resizing_takes_height_first():
    ramp = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32), (1, 20, 40))
    small = resize_image(ramp, (10, 8))
    assert small.shape == (1, 10, 8)
    assert small.dtype == np.float32
    assert (np.diff(small[0], axis=1) > 0).all()
    np.testing.assert_allclose(np.diff(small[0], axis=0), 0, atol=1e-6)


def test_shrinking_averages_over_the_footprint():
    """Bilinear with antialias is a triangle filter twice as wide as a new pixel."""
    row = RNG.random(12).astype(np.float32)
    small = resize_image(np.broadcast_to(row, (1, 12, 12)), (12, 4))[0, 0]
    for j in range(4):
        weights = np.maximum(0, 1 - np.abs(np.arange(12) + 0.5 - (j + 0.5) * 3) / 3)
        assert small[j] == pytest.approx((weights * row).sum() / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(3, 4), (5, 9), (11, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_to_a_size_gives_the_very_pixels_of_decoding_and_resizing(tmp_path, mode, size, channels):
    image = Image.fromarray(np.dstack([COLOUR, ALPHA])).convert("L" if mode == "I;16" else mode)
    path = save(tmp_path, image.convert(mode))
    found = read_resized(path, size, channels)
    assert found.dtype == np.float32
    assert found.shape == (channels, *size)
    np.testing.assert_array_equal(found, fit(read_image(path), size, channels))


def test_every_level_of_eight_bits_is_the_same_number_both_ways(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = save(tmp_path, Image.fromarray(levels))
    np.testing.assert_array_equal(read_resized(path, (16, 16), 1), from_bytes(levels))


def photograph(height, width):
    """A picture in colour without grain: what differs between two ways of averaging it is the ways."""
    y, x = np.mgrid[:height, :width] / 40
    planes = [0.5 + 0.5 * np.sin(x + c) * np.cos(y - c) for c in range(3)]
    return Image.fromarray((255 * np.stack(planes, axis=2)).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "wanted", "divisor"),
    [
        ((1024, 1024), (224, 224), 2),
        ((1024, 1024), (256, 256), 2),  # just twice the wanted sides are left
        ((1024, 1024), (257, 256), 1),
        ((1024, 1024), (128, 128), 4),
        ((1024, 1024), (64, 64), 8),
        ((4096, 4096), (8, 8), 8),
        ((1023, 1024), (64, 64), 1),  # the last row would show half of what the others do
        ((1020, 1024), (64, 64), 4),
        ((375, 500), (224, 224), 1),
        ((109, 89), (64, 64), 1),
        ((64, 64), (64, 64), 1),
    ],
)
def test_when_a_jpeg_is_decoded_at_a_reduced_size(size, wanted, divisor, tmp_path):
    for name in ("a.jpg", "a.JPEG", "a.dcm"):
        assert reduction(tmp_path / name, size, wanted) == divisor
    assert reduction(tmp_path / "a.png", size, wanted) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_shows_the_same_image(tmp_path, orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, photograph(256, 320), "a.jpg", quality=95, exif=exif)
    size = (30, 22)
    whole = read_resized(path, size, 3)
    decoded = []
    transpose = images.ImageOps.exif_transpose

    def noted(image, **options):
        decoded.append(image.size)
        transpose(image, **options)

    monkeypatch.setattr(images.ImageOps, "exif_transpose", noted)
    for divisor in (2, 4):
        reduced = read_resized(path, size, 3, reduce=divisor)
        assert decoded.pop() == (320 // divisor, 256 // divisor)
        assert np.abs(reduced - whole).mean() < 0.005
        assert np.abs(reduced - whole).max() < 0.05
        np.testing.assert_array_equal(reduced, read_resized(path, size, 3, reduce=divisor))
    assert np.abs(whole - whole[:, ::-1, ::-1]).mean() > 0.05


def test_a_jpeg_that_is_named_so_only_is_decoded_whole(tmp_path):
    path = tmp_path / "a.jpg"
    photograph(256, 320).save(path, "PNG")
    np.testing.assert_array_equal(read_resized(path, (30, 22), 3, reduce=4), read_resized(path, (30, 22), 3))


def test_mask_values(tmp_path):
    levels = (GREY % 3).astype(np.uint8)
    path = save(tmp_path, Image.fromarray(levels))
    np.testing.assert_array_equal(read_mask(path), levels > 0)
    np.testing.assert_array_equal(read_mask(path, 2), levels == 2)
    with pytest.raises(DataError, match=r"a mask needs one number per pixel .* found mode RGB: convert it"):
        read_mask(save(tmp_path, Image.fromarray(COLOUR)))


def test_white_of_a_one_bit_mask_is_any_value_but_zero(tmp_path):
    path = save(tmp_path, Image.fromarray(GREY > 99))
    with Image.open(path) as image:
        assert image.mode == "1"
    for value in (None, 1, 255):
        np.testing.assert_array_equal(read_mask(path, value), GREY > 99)
    np.testing.assert_array_equal(read_mask(path, 0), GREY <= 99)


def test_a_mask_whose_levels_were_blurred_is_refused(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[:16, :16] = 255  # whole blocks of the format, which it keeps
    np.testing.assert_array_equal(read_mask(save(tmp_path, Image.fromarray(mask), "a.jpg")), mask > 0)
    mask[3:9, 5:21] = 255
    path = save(tmp_path, Image.fromarray(mask), "b.jpg")
    for value in (None, 255):
        with pytest.raises(
            DataError, match=r"b\.jpg: JPEG has blurred the levels of this mask: save it as PNG"
        ):
            read_mask(path, value)


@pytest.mark.parametrize(
    ("bits", "photometric", "what"), [(12, 1, "12 bits a pixel"), (16, 0, "white at 0"), (16, 1, None)]
)
def test_a_tiff_is_read_as_it_is_displayed_or_refused(tmp_path, bits, photometric, what):
    """A TIFF of 4 × 2 pixels, written by hand: Pillow gives the stored numbers for the first two."""
    levels = np.array([[0, 1000, 2000, 2**bits - 1]] * 2)
    pairs = levels.reshape(-1, 2)
    packed = (
        bytes(b for x, y in pairs.tolist() for b in (x >> 4, (x & 15) << 4 | y >> 8, y & 255))
        if bits == 12
        else levels.astype("<u2").tobytes()
    )
    tags = [(256, 4), (257, 2), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 2)]
    tags.append((279, len(packed)))
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    path = tmp_path / "a.tif"
    path.write_bytes(start + packed + struct.pack("<H", len(tags)) + fields + bytes(4))
    for read in (read_image, lambda path: read_resized(path, (2, 4), 1)):
        if what is None:
            np.testing.assert_allclose(read(path)[0], levels / 65535, atol=1e-6)
        else:
            with pytest.raises(
                DataError, match=rf"a\.tif: a TIFF with {what} cannot be read: convert it to 16 bits"
            ):
                read(path)


def test_mask_by_palette_index_not_by_colour(tmp_path):
    image = Image.fromarray((GREY % 3).astype(np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(read_mask(save(tmp_path, image), 1), GREY % 3 == 1)


def area_of_overlap(mask, i, j, size):
    """Slow reference: the covered fraction of a new pixel, by exact rectangles."""
    (h, w), (nh, nw) = mask.shape, size
    y0, y1, x0, x1 = i * h / nh, (i + 1) * h / nh, j * w / nw, (j + 1) * w / nw
    total = 0.0
    for r, c in zip(*np.nonzero(mask), strict=True):
        total += max(0, min(y1, r + 1) - max(y0, r)) * max(0, min(x1, c + 1) - max(x0, c))
    return total / ((y1 - y0) * (x1 - x0))


@settings(max_examples=30)
@given(st.integers(3, 12), st.integers(3, 12), st.integers(2, 14), st.integers(2, 14), st.integers(0, 99))
def test_resized_mask_is_half_covered_pixels_and_loses_nothing(h, w, nh, nw, seed):
    mask = np.random.default_rng(seed).random((h, w)) < 0.4
    resized = resize_mask(mask, (nh, nw))
    covered = np.array([[area_of_overlap(mask, i, j, (nh, nw)) for j in range(nw)] for i in range(nh)])
    assert resized[covered > 0.5 + 1e-9].all()
    assert not resized[covered == 0].any()
    assert resized.any() == mask.any()


def test_a_thin_line_stays_a_line():
    mask = np.zeros((64, 64), bool)
    np.fill_diagonal(mask, True)
    small = resize_mask(mask, (16, 16))
    assert np.diagonal(small).all()
    assert small.sum() <= 3 * 16


def test_enlarging_by_whole_numbers_repeats_pixels():
    mask = GREY > 127
    np.testing.assert_array_equal(resize_mask(mask, (10, 27)), np.kron(mask, np.ones((2, 3), bool)))


def test_the_limit_of_pixels_is_the_documented_one():
    assert images.MAX_PIXELS == 100_000_000
