import builtins
import io

import numpy as np
import pytest
from PIL import Image

from lapbench.data import images
from lapbench.data.images import read_image, read_resized, read_size
from lapbench.errors import DataError, MissingLibraryError

RNG = np.random.default_rng(0)
EIGHT = RNG.integers(0, 256, (6, 8), np.uint8)
TWELVE = RNG.integers(0, 4096, (6, 8)).astype(np.uint16)
SMOOTH = np.add.outer(np.arange(32) * 4, np.arange(40) * 3).astype(np.uint8)


def test_eight_bits_uncompressed(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", EIGHT)
    image = read_image(path)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, EIGHT[None] / 255, rtol=1e-6)
    assert read_size(path) == (6, 8)


def test_jpeg_baseline_as_published(tmp_path, write_dicom):
    """The pixels are those that Pillow finds in the same JPEG stream outside DICOM."""
    image = read_image(write_dicom(tmp_path / "a.dcm", SMOOTH, jpeg=True))
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).save(stream, "JPEG", quality=95)
    np.testing.assert_allclose(image[0], np.asarray(Image.open(stream)) / 255, rtol=1e-6)
    assert np.abs(image[0] - SMOOTH / 255).max() < 0.02


def test_monochrome1_is_turned_round(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", EIGHT, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read_image(path), 1 - EIGHT[None] / 255, atol=1e-6)


def test_twelve_bits_in_sixteen(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", TWELVE, BitsStored=12)
    np.testing.assert_allclose(read_image(path), TWELVE[None] / 4095, rtol=1e-6)


def test_sixteen_signed_bits(tmp_path, write_dicom):
    signed = RNG.integers(-32768, 32768, (6, 8)).astype(np.int16)
    path = write_dicom(tmp_path / "a.dcm", signed)
    np.testing.assert_allclose(read_image(path), (signed[None] + 32768.0) / 65535, atol=1e-6)


def test_values_beyond_the_stored_bits_are_cut(tmp_path, write_dicom):
    pixels = np.array([[0, 4095, 4096, 65535]], np.uint16)
    shown = read_image(write_dicom(tmp_path / "a.dcm", pixels, BitsStored=12))
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert shown[0, 0, 1] == 1


@pytest.mark.parametrize("monochrome", [1, 2])
@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 40, "WindowWidth": 400},
        {"WindowCenter": [40, 900], "WindowWidth": [400, 50]},
        {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 40, "WindowWidth": 1},
    ],
)
def test_rescaled_and_windowed_as_pydicom_does(tmp_path, write_dicom, window, monochrome):
    """The foreign computation: modality LUT, then VOI LUT, whose range of output is that of the bits."""
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    path = write_dicom(
        tmp_path / "a.dcm", TWELVE, BitsStored=12, RescaleSlope=0.5, RescaleIntercept=-1024, **window,
        PhotometricInterpretation=f"MONOCHROME{monochrome}",
    )  # fmt: skip
    header = pydicom.dcmread(path)
    seen = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header)
    low, high = -1024, 4095 * 0.5 - 1024
    wanted = (seen - low) / (high - low)
    wanted = 1 - wanted if monochrome == 1 else wanted
    np.testing.assert_allclose(read_image(path)[0], wanted, atol=1e-6)
    assert 0.05 < wanted.mean() < 0.95


def test_the_linear_window_by_hand(tmp_path, write_dicom):
    """PS3.3 C.11.2.1.2.1: centre 2048, width 4096 is the identity on twelve bits."""
    pixels = np.array([[0, 1, 2048, 4095]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_allclose(read_image(path)[0], pixels / 4095, atol=1e-6)
    path = write_dicom(tmp_path / "b.dcm", pixels, BitsStored=12, WindowCenter=2, WindowWidth=3)
    np.testing.assert_allclose(read_image(path)[0], [[0, 0.25, 1, 1]], atol=1e-6)


def test_a_falling_slope_without_a_window(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", EIGHT, RescaleSlope=-1, RescaleIntercept=255)
    np.testing.assert_allclose(read_image(path), 1 - EIGHT[None] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"RescaleSlope": 0}, r"the rescale slope must be a number other than 0, found 0"),
        ({"WindowCenter": 1, "WindowWidth": 0.5}, r"of the kind LINEAR cannot be 0\.5 wide"),
        ({"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"}, r"found 'CUBIC'"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"wanted grey pixels .*, found PALETTE COLOR"),
        ({"NumberOfFrames": 3}, r"wanted one image, found 3 frames"),
        ({"BitsStored": 0}, r"wanted 1 to 16 bits a pixel, found 0"),
        ({"Rows": 7}, r"broken or truncated"),
        ({"Rows": 0}, r"gives no size of an image \(Rows 0, Columns 8\)"),
        ({"Rows": 65000, "Columns": 65000}, r"claims more than 100,000,000 pixels"),
    ],
)
def test_headers_that_cannot_be_read(tmp_path, write_dicom, elements, message):
    path = write_dicom(tmp_path / "a.dcm", EIGHT, **elements)
    with pytest.raises(DataError, match=rf"a\.dcm: .*{message}"):
        read_image(path)


def test_a_look_up_table_is_not_passed_over(tmp_path, write_dicom):
    from pydicom import Dataset, Sequence

    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        path = write_dicom(tmp_path / "a.dcm", EIGHT, **{name: Sequence([Dataset()])})
        with pytest.raises(DataError, match="its grey levels need a look-up table"):
            read_image(path)


def test_a_compression_without_a_decoder(tmp_path, write_dicom, monkeypatch):
    from pydicom.pixels.decoders import base

    path = write_dicom(tmp_path / "a.dcm", SMOOTH, jpeg=True)
    monkeypatch.setattr(base.Decoder, "is_available", property(lambda _: False))
    with pytest.raises(DataError, match=r"decodes its compression, JPEG Baseline .*: pip install pylibjpeg"):
        read_image(path)


def test_broken_files(tmp_path, write_dicom):
    whole = write_dicom(tmp_path / "a.dcm", SMOOTH, jpeg=True).read_bytes()
    broken = tmp_path / "b.dcm"
    for kept, message in ((0, "an empty file"), (100, "no DICOM file"), (len(whole) - 60, "truncated")):
        broken.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=rf"b\.dcm: .*{message}.*: fetch the file again"):
            read_image(broken)
    Image.fromarray(EIGHT).save(broken, "PNG")
    with pytest.raises(DataError, match="no DICOM file"):
        read_size(broken)
    with pytest.raises(DataError, match=r"c\.dcm: there is no such image"):
        read_size(tmp_path / "c.dcm")


def test_no_pixels(tmp_path, write_dicom):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", EIGHT)
    header = pydicom.dcmread(path)
    del header.PixelData
    header.save_as(path)
    with pytest.raises(DataError, match="holds no pixels"):
        read_image(path)
    assert read_size(path) == (6, 8)


def test_the_limit_of_pixels_is_that_of_images(tmp_path, write_dicom, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", EIGHT)
    monkeypatch.setattr(images, "MAX_PIXELS", 47)
    for read in (read_image, read_size):
        with pytest.raises(DataError, match="more than 47 pixels"):
            read(path)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    def refuse(name, *rest, **more):
        if name.partition(".")[0] == "pydicom":
            raise ImportError("no pydicom")
        return found(name, *rest, **more)

    found = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    for read in (read_image, read_size):
        with pytest.raises(MissingLibraryError, match=r"pip install 'lapbench\[dicom\]'"):
            read(tmp_path / "a.dcm")


def test_a_genuine_radiograph(real):
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'lapbench[dicom]'")
    [path] = (real("rsna") / "dicom").iterdir()
    image = read_image(path)
    assert image.shape == (1, 1024, 1024)
    assert read_size(path) == (1024, 1024)
    np.testing.assert_allclose(image[0], pydicom.dcmread(path).pixel_array / 255, atol=1e-6)
    assert 0.2 < image.mean() < 0.8


LARGE = np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)


@pytest.mark.parametrize("monochrome", [1, 2])
def test_a_jpeg_inside_is_decoded_at_a_reduced_size(tmp_path, write_dicom, monochrome, monkeypatch):
    """The pixels are those that Pillow finds in the same JPEG stream outside DICOM, reduced alike."""
    path = write_dicom(
        tmp_path / "a.dcm", LARGE, jpeg=True, PhotometricInterpretation=f"MONOCHROME{monochrome}"
    )
    whole, reduced = (read_resized(path, (10, 12), 1, reduce=divisor) for divisor in (1, 4))
    Image.fromarray(LARGE).save(tmp_path / "a.jpg", quality=95)
    bright = read_resized(tmp_path / "a.jpg", (10, 12), 1, reduce=4)
    np.testing.assert_allclose(reduced, bright if monochrome == 2 else 1 - bright, atol=1e-6)
    assert 0 < np.abs(reduced - whole).max() < 0.05


@pytest.mark.parametrize(
    "elements",
    [{"WindowCenter": 90, "WindowWidth": 40}, {"PixelRepresentation": 1}],
    ids=["window", "signed"],
)
def test_what_averaging_would_change_is_decoded_whole(tmp_path, write_dicom, elements):
    path = write_dicom(tmp_path / "a.dcm", LARGE, jpeg=True, **elements)
    np.testing.assert_array_equal(read_resized(path, (10, 12), 1, reduce=4), read_resized(path, (10, 12), 1))


def test_uncompressed_pixels_are_decoded_whole(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", LARGE)
    np.testing.assert_array_equal(read_resized(path, (10, 12), 1, reduce=4), read_resized(path, (10, 12), 1))


def test_a_jpeg_of_another_size_than_the_header_says(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", LARGE, jpeg=True, Rows=192)
    with pytest.raises(DataError, match=r"a\.dcm: broken or truncated \(the JPEG in it has mode and size"):
        read_resized(path, (10, 12), 1, reduce=4)
