import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    monkeypatch.delenv("LAPBENCH_DATA", raising=False)


@pytest.fixture
def real():
    """The folder of a real data set by name; the test is skipped where it is absent."""

    def find(name):
        if not (REAL / name).is_dir():
            pytest.skip(f"the real data set {name} is not in {REAL}")
        return REAL / name

    return find


@pytest.fixture
def write_image():
    """Write an image of that height and width; pixel (i, j) is i·16 + j, so that swapped axes show."""

    def write(path, height, width):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (np.arange(height)[:, None] * 16 + np.arange(width)) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def write_dicom():
    """Write a DICOM file of grey pixels; jpeg: compressed, as the RSNA files are; elements overwrite."""
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'lapbench[dicom]'")
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

    def write(path, pixels, *, jpeg=False, **elements):
        header = pydicom.Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
        header.Rows, header.Columns = pixels.shape[:2]
        header.SamplesPerPixel = 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
        header.PixelRepresentation = int(pixels.dtype.kind == "i")
        if jpeg:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=95)
            header.PixelData = encapsulate([stream.getvalue()])
            header["PixelData"].is_undefined_length = True
        else:
            header.PixelData = pixels.tobytes()
            header["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
        for name, value in elements.items():
            setattr(header, name, value)
        header.HighBit = max(header.BitsStored - 1, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        header.save_as(path, enforce_file_format=True)
        return path

    return write
