"""Builders of small valid inputs, shared by the tests: a DICOM radiograph, every attribute of which can be overridden."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"


def make_pixels(rows: int = 32, columns: int = 40, *, bits: int = 12, seed: int = 0) -> np.ndarray:
    """A noisy ramp over the whole range of `bits`, uint16 [rows, columns]: the first value is 0, the last the greatest.

    JPEG 2000 cannot encode (with its usual five decompositions) an image with a side below 32.
    """
    top = 2**bits - 1
    ramp = np.linspace(0, top, rows * columns).reshape(rows, columns)
    noisy = ramp + np.random.default_rng(seed).normal(0, top / 50, ramp.shape)
    noisy.flat[0], noisy.flat[-1] = 0, top
    return np.clip(np.rint(noisy), 0, top).astype(np.uint16)


def make_uid(name: str) -> str:
    """A valid UID that depends on `name` alone."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def make_dataset(*, pixels: np.ndarray | None = None, name: str = "image", **overrides: Any) -> Dataset:
    """A minimal valid digital radiograph, MONOCHROME2, 12 bits in 16, with one linear window over the whole range.

    pixels: unsigned integers [rows, columns] (uint8 or uint16), or [frames, rows, columns] with NumberOfFrames given.
    name: decides the study and instance UIDs, so that two names are two studies of the same patient.
    overrides: DICOM keyword = value; None leaves the attribute out.
    """
    pixels = make_pixels() if pixels is None else pixels
    rows, columns = pixels.shape[-2:]
    attributes: dict[str, Any] = {
        "SOPClassUID": DX_FOR_PRESENTATION,
        "SOPInstanceUID": make_uid(f"{name}/instance"),
        "StudyInstanceUID": make_uid(f"{name}/study"),
        "SeriesInstanceUID": make_uid(f"{name}/series"),
        "PatientID": "TEST-1",
        "PatientName": "TEST^ANIMAL",
        "PatientSpeciesDescription": "Canine",
        "Modality": "DX",
        "PresentationIntentType": "FOR PRESENTATION",
        "BodyPartExamined": "THORAX",
        "ViewPosition": "VD",
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": 12 if pixels.itemsize == 2 else 8,
        "HighBit": 11 if pixels.itemsize == 2 else 7,
        "PixelRepresentation": 0,
        "ImagerPixelSpacing": [0.14, 0.14],
        "WindowCenter": 2048 if pixels.itemsize == 2 else 128,
        "WindowWidth": 4096 if pixels.itemsize == 2 else 256,
        "PixelData": pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(),
    }
    dataset = Dataset()
    for keyword, value in (attributes | overrides).items():
        if tag_for_keyword(keyword) is None:
            raise KeyError(f"'{keyword}' is no DICOM keyword.")
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    return dataset


def make_dicom(
    path: Path,
    *,
    pixels: np.ndarray | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **overrides: Any,
) -> Path:
    """Write `make_dataset(...)` as a DICOM file and return its path; UIDs follow from the file's name.

    transfer_syntax: any uncompressed one, or a lossless one that pydicom can encode (RLE, JPEG-LS, JPEG 2000).
    """
    dataset = make_dataset(pixels=pixels, name=path.stem, **overrides)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = overrides.get("SOPClassUID") or DX_FOR_PRESENTATION
    meta.MediaStorageSOPInstanceUID = overrides.get("SOPInstanceUID") or make_uid(f"{path.stem}/instance")
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128
    if "PixelData" in dataset:
        _encode(dataset, UID(transfer_syntax))
    meta.TransferSyntaxUID = UID(transfer_syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def _encode(dataset: Dataset, syntax: UID) -> None:
    """Bring the pixel data into `syntax`; the UIDs stay (pydicom would give a compressed image a new one)."""
    if syntax.is_compressed and syntax.is_encapsulated:
        plugin = "gdcm" if syntax == RLELossless else ""
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
