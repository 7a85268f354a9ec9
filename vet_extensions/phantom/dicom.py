"""One rendered view as a real DICOM file: stored values, the grey-scale attributes that undo them, the transfer syntax.

Called by `phantom.archive`. A renderer gives display values z in [0, 1] with bone white; a detector stores something
else. For each file a `DisplayMapping` is drawn, and the stored 12-bit values are chosen such that the standard pipeline
(PS3.4 N.2: modality LUT, VOI LUT or window, inversion of MONOCHROME1) gives z back, to within the rounding of the
stored values.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels import get_encoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from vet_extensions.phantom.headers import PLAIN, HeaderPlan, ImageKey, Variant, build_header, draw_plan

BITS_STORED = 12
TOP = 2**BITS_STORED - 1
SMALLEST_SIDE_PX = 32
"""JPEG 2000 with its usual five decompositions cannot encode less."""

_MODALITY_TOP = 2**16 - 1
_VOI_LUT_BITS = 12
_SIGMOID_WIDTH = 0.4  # of the stored range: the ends then show as 0.7 % and 99.3 %
_SYNTAX_SHARES = {
    ExplicitVRLittleEndian: 0.46,
    ImplicitVRLittleEndian: 0.14,
    JPEGLSLossless: 0.10,
    JPEG2000Lossless: 0.10,
    RLELossless: 0.09,
    JPEGLosslessSV1: 0.09,
    ExplicitVRBigEndian: 0.02,
}
_ENCODING_PLUGIN = {JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg", RLELossless: "gdcm"}
_IMPLEMENTATION_UID = "2.25.209144573262470523011404372829482519305"


@dataclass(frozen=True)
class DisplayMapping:
    """How stored values become display values: the truth that an intake has to find from the header.

    is_inverted: MONOCHROME1.
    low, high: stored values that show as the two ends of the display (before the inversion of MONOCHROME1).
    under, over: stored values of the pixels that are saturated in the picture; equal to or beyond low and high.
    modality: IDENTITY, RESCALE or LUT; slope and intercept are RESCALE's (1 and 0 otherwise).
    voi: LINEAR, LINEAR_EXACT, SIGMOID, LUT or NONE (the whole stored range is shown).
    curve: exponent of the look-up table, where there is one.
    """

    is_inverted: bool
    low: int
    high: int
    under: int
    over: int
    modality: str
    slope: float
    intercept: float
    voi: str
    curve: float

    @property
    def photometric(self) -> str:
        return "MONOCHROME1" if self.is_inverted else "MONOCHROME2"

    @property
    def padding_value(self) -> int:
        """A stored value that no real pixel has, at the dark end of the display (PS3.3 C.7.5.1.1.2)."""
        return TOP if self.is_inverted else 0

    @property
    def ends(self) -> tuple[float, float]:
        """`low` and `high` after the modality transform."""
        if self.modality == "LUT":
            table = _modality_table(self.curve)
            return float(table[self.low]), float(table[self.high])
        return self.slope * self.low + self.intercept, self.slope * self.high + self.intercept

    @property
    def window(self) -> tuple[float, float] | None:
        """(center, width) in modality units, None without a window; LINEAR has a half and a one (C.11.2.1.2.1)."""
        first, last = self.ends
        middle, span = (first + last) / 2, last - first
        by_function = {"LINEAR": (middle + 0.5, span + 1), "LINEAR_EXACT": (middle, span)}
        by_function["SIGMOID"] = (middle, round(_SIGMOID_WIDTH * span, 2))
        return by_function.get(self.voi)


PLAIN_MAPPING = DisplayMapping(False, 200, 3800, 200, 3800, "IDENTITY", 1.0, 0.0, "LINEAR", 1.0)


@dataclass(frozen=True)
class WrittenImage:
    """What was written, for truth.parquet. `padding_value` is None where the file has no padding."""

    plan: HeaderPlan
    mapping: DisplayMapping
    transfer_syntax: str
    padding_value: int | None
    n_bytes: int


def write_dicom(
    path: Path, *, key: ImageKey, image: np.ndarray, spacing_mm: float, plain: bool = False
) -> WrittenImage:
    """Write one rendered view; the file appears under its name only when it is whole.

    image: float [rows, columns], display values in [0, 1], bone white; sides of at least 32 px.
    spacing_mm: distance of pixel centres at the detector.
    plain: explicit little endian, MONOCHROME2, one linear window, no awkward habits.
    """
    plan = PLAIN if plain else draw_plan(key)
    mapping = PLAIN_MAPPING if plain else draw_mapping(key.rng("image", "mapping"), is_cr=plan.is_cr)
    syntax = ExplicitVRLittleEndian if plain else _draw_transfer_syntax(key, plan, mapping)
    outside = _outside_collimation(image) if Variant.PADDING in plan.variants and mapping.voi != "NONE" else None
    has_padding = outside is not None and bool(outside.any())
    stored = to_stored(mapping, image)
    if has_padding:
        stored[outside] = mapping.padding_value
    file = build_header(key, plan, spacing_mm=spacing_mm)
    _add_greyscale(file, mapping, plan)
    if has_padding:
        file.add_new("PixelPaddingValue", "US", mapping.padding_value)
    if Variant.OVERLAY in plan.variants:
        _add_overlay(file, *image.shape)
    _add_pixels(file, stored, syntax)
    content = _file_bytes(file, syntax, with_group_length=Variant.GROUP_LENGTH in plan.variants)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return WrittenImage(plan, mapping, str(syntax), mapping.padding_value if has_padding else None, len(content))


def draw_mapping(rng: np.random.Generator, *, is_cr: bool) -> DisplayMapping:
    """Draw a sensor-like mapping. DX objects know no modality transform and always have a window or VOI LUT (PS3.3 C.8.11.3)."""
    low, high = int(rng.integers(96, 900)), int(rng.integers(2800, 3960))
    modality = str(rng.choice(["IDENTITY", "RESCALE", "LUT"], p=[0.5, 0.35, 0.15] if is_cr else [1, 0, 0]))
    functions = ["LINEAR", "LINEAR_EXACT", "SIGMOID", "LUT", "NONE"]
    shares = [0.68, 0.16, 0.16, 0, 0]  # a table or the whole range goes with untransformed values only
    if modality == "IDENTITY":
        shares = [0.46, 0.13, 0.13, 0.14, 0.14] if is_cr else [0.56, 0.15, 0.15, 0.14, 0]
    voi = str(rng.choice(functions, p=shares))
    if voi == "NONE":
        low, high = 0, TOP
    has_headroom = voi in ("LINEAR", "LINEAR_EXACT", "LUT")
    is_rescaled = modality == "RESCALE"
    return DisplayMapping(
        is_inverted=bool(rng.random() < 0.48),
        low=low,
        high=high,
        under=int(rng.integers(1, low)) if has_headroom else low,
        over=int(rng.integers(high, TOP)) if has_headroom else high,
        modality=modality,
        slope=float(rng.choice([0.25, 0.5, 2.0, 4.0])) if is_rescaled else 1.0,
        intercept=float(rng.integers(-2000, 2000)) if is_rescaled else 0.0,
        voi=voi,
        curve=float(rng.uniform(0.7, 1.5)) if "LUT" in (voi, modality) else 1.0,
    )


def to_stored(mapping: DisplayMapping, image: np.ndarray) -> np.ndarray:
    """The stored values, uint16 [rows, columns], whose display is `image` (float [rows, columns] in [0, 1], bone white)."""
    shown = 1.0 - image.astype(np.float64) if mapping.is_inverted else image.astype(np.float64)
    first, last = mapping.ends
    if mapping.voi == "SIGMOID":
        center, width = mapping.window or (0.0, 1.0)
        with np.errstate(divide="ignore"):
            values = center + width / 4 * (np.log(shown) - np.log1p(-shown))
        values = np.clip(values, first, last)
    elif mapping.voi == "LUT":
        values = first + (last - first) * shown ** (1 / mapping.curve)
    else:
        values = first + (last - first) * shown
    if mapping.modality == "LUT":
        stored = TOP * (values / _MODALITY_TOP) ** (1 / mapping.curve)
    else:
        stored = (values - mapping.intercept) / mapping.slope
    stored = np.rint(stored).astype(np.uint16)
    stored[shown <= 0] = mapping.under
    stored[shown >= 1] = mapping.over
    return stored


def _modality_table(curve: float) -> np.ndarray:
    """The modality LUT, int [4096]: 12-bit stored values to 16 bits along a power curve."""
    return np.rint(_MODALITY_TOP * (np.arange(TOP + 1) / TOP) ** curve).astype(np.int64)


def _draw_transfer_syntax(key: ImageKey, plan: HeaderPlan, mapping: DisplayMapping) -> UID:
    shares = list(_SYNTAX_SHARES.values())
    syntax = list(_SYNTAX_SHARES)[int(key.rng("image", "transfer syntax").choice(len(shares), p=shares))]
    has_words = Variant.OVERLAY in plan.variants or "LUT" in (mapping.modality, mapping.voi)  # built little endian
    if Variant.GROUP_LENGTH in plan.variants or (has_words and not syntax.is_little_endian):
        return ExplicitVRLittleEndian
    return syntax


def _outside_collimation(image: np.ndarray) -> np.ndarray:
    """Bool [rows, columns]: outside the smallest upright rectangle that holds every pixel above black."""
    outside = np.ones(image.shape, bool)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    if rows.size:
        outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    return outside


def _add_greyscale(file: Dataset, mapping: DisplayMapping, plan: HeaderPlan) -> None:
    """Modality LUT or rescale (C.11.1), window or VOI LUT (C.11.2), and photometric facts that agree (C.8.11.3)."""
    file.PhotometricInterpretation = mapping.photometric
    file.PixelIntensityRelationship = "LOG"
    file.PixelIntensityRelationshipSign = 1 if mapping.is_inverted else -1
    if not plan.is_cr:
        file.PresentationLUTShape = "INVERSE" if mapping.is_inverted else "IDENTITY"
    if mapping.modality == "LUT":
        table = _modality_table(mapping.curve)
        file.ModalityLUTSequence = [_lut(table, first=0, bits=16)]
        file.ModalityLUTSequence[0].ModalityLUTType = "US"
    elif mapping.modality == "RESCALE" or not plan.is_cr:
        file.RescaleIntercept, file.RescaleSlope = f"{mapping.intercept:g}", f"{mapping.slope:g}"
        file.RescaleType = "US"
    if mapping.voi == "LUT":
        ramp = np.linspace(0, 1, mapping.high - mapping.low + 1) ** mapping.curve
        file.VOILUTSequence = [_lut(np.rint(ramp * (2**_VOI_LUT_BITS - 1)), first=mapping.low, bits=_VOI_LUT_BITS)]
    if mapping.window is None:
        return
    center, width = mapping.window
    file.WindowCenter, file.WindowWidth = center, width
    if Variant.TWO_WINDOWS in plan.variants:
        file.WindowCenter, file.WindowWidth = [center, center + width / 4], [width, width / 2]
        file.WindowCenterWidthExplanation = ["NORMAL", "HARD"]
    if mapping.voi != "LINEAR" or Variant.TWO_WINDOWS in plan.variants:  # LINEAR is what an absent function means
        file.VOILUTFunction = mapping.voi


def _lut(table: np.ndarray, *, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return item


def _add_overlay(file: Dataset, rows: int, columns: int) -> None:
    """A thin frame in overlay plane 6000 (C.9.2), which a viewer may draw and an intake must not burn in."""
    plane = np.zeros((rows, columns), np.uint8)
    plane[2:-2, 2:-2] = 1
    plane[3:-3, 3:-3] = 0
    bits = np.packbits(plane, axis=None, bitorder="little").tobytes()
    data = bits + b"\0" * (len(bits) % 2)
    attributes = [("US", 0x10, rows), ("US", 0x11, columns), ("CS", 0x40, "G"), ("SS", 0x50, [1, 1])]
    attributes += [("US", 0x100, 1), ("US", 0x102, 0), ("OW", 0x3000, data)]
    for vr, element, value in attributes:  # repeating groups have no keyword of their own
        file.add_new((0x6000, element), vr, value)


def _add_pixels(file: Dataset, stored: np.ndarray, syntax: UID) -> None:
    file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel = 1
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, BITS_STORED, BITS_STORED - 1
    file.PixelRepresentation = 0
    if not syntax.is_encapsulated:
        file.add_new("PixelData", "OW", stored.astype("<u2" if syntax.is_little_endian else ">u2").tobytes())
        return
    frame = _encode_jpeg_lossless(file, stored) if syntax == JPEGLosslessSV1 else _encode(file, stored, syntax)
    file.add_new("PixelData", "OB", encapsulate([frame]))
    file["PixelData"].is_undefined_length = True


def _encode(file: Dataset, stored: np.ndarray, syntax: UID) -> bytes:
    return get_encoder(syntax).encode(
        stored,
        encoding_plugin=_ENCODING_PLUGIN[syntax],
        rows=file.Rows,
        columns=file.Columns,
        number_of_frames=1,
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=BITS_STORED,
        pixel_representation=0,
        photometric_interpretation=file.PhotometricInterpretation,
    )


def _encode_jpeg_lossless(file: Dataset, stored: np.ndarray) -> bytes:
    """JPEG lossless, first-order prediction (.70), by GDCM in memory: no pydicom plugin encodes it."""
    import gdcm

    writer = gdcm.ImageWriter()  # owns the image: it must outlive it
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((file.Columns, file.Rows, 1))
    kind = gdcm.PhotometricInterpretation.GetPIType(file.PhotometricInterpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ImplicitVRLittleEndian))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, BITS_STORED, BITS_STORED - 1, 0))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(stored.astype("<u2").tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(image)
    assert change.Change(), "GDCM could not encode JPEG lossless"
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    assert fragments.GetNumberOfFragments() == 1, "one frame is one fragment"
    return fragments.GetFragment(0).GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")


def _file_bytes(file: Dataset, syntax: UID, *, with_group_length: bool) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = file.SOPClassUID
    meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = UID(_IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "VETDINO_PHANTOM"
    file.file_meta = meta
    file.preamble = b"\0" * 128
    buffer = io.BytesIO()
    dcmwrite(buffer, file, enforce_file_format=True)
    content = buffer.getvalue()
    return _with_group_length(content, file) if with_group_length else content


def _with_group_length(content: bytes, file: Dataset) -> bytes:
    """Put the retired (0008,0000) before an explicit little endian data set; pydicom no longer writes it (PS3.5 7.2)."""
    group = DicomBytesIO()
    group.is_little_endian, group.is_implicit_VR = True, False
    write_dataset(group, file.group_dataset(0x0008), parent_encoding=file.get("SpecificCharacterSet", "ascii"))
    encoded = group.getvalue()
    start = content.index(encoded)
    element = struct.pack("<HH2sHI", 0x0008, 0x0000, b"UL", 4, len(encoded))
    return content[:start] + element + content[start:]
