"""Every transfer syntax that is read: pixels as they were written, and no torn stream taken for a picture."""

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pytest
from factories import make_dicom, make_pixels
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_files
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tests.source_files import opened_dicom
from vet_extensions.intake.decode import DECODERS, read_frame
from vet_extensions.intake.dicom import pixel_layout
from vet_extensions.intake.pixels import stored_values
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode

LOSSLESS = (
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
)
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000)

# RAMP, encoded by imagecodecs (OpenJPH), since no encoder among the dependencies writes high-throughput JPEG 2000.
RAMP = (np.mgrid[0:32, 0:32][0] * 128 + np.mgrid[0:32, 0:32][1] * 4).astype(np.uint16)
RAMP_HTJ2K = (
    "|4;u>04YEK0000W0000W00000000000000W0000W0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh=~7W02cr"
    "OPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000xBvnFlfVEbkM;!zbO68r62Jfx0FVI(bO1>51BY|~zyK3K026=+@&JN#03s=p0K-%OzyK8x00m$|2=S_L0"
    "(Ah6bi@%y{=ia!?6v^F02Pn`1*iZ3008H}r>CdFcmO{7@ZrOU4<A1M{g8lr_Cf*dx&XicEeHSw(15C{s;c?_De39y>FMd>d;tD_zu)io`~7~u-|zSP|9D"
    "`82ftzv9{q?wd-fp#?6U#?*#"
)


def write_compressed(path: Path, syntax: UID) -> tuple[Path, np.ndarray]:
    """A file in `syntax` and the pixels that were encoded."""
    eight_bits: dict[str, Any] = {"BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256}
    if syntax in (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K):
        make_dicom(path, pixels=RAMP, BitsStored=16, HighBit=15)
        return _replace_stream(path, base64.b85decode(RAMP_HTJ2K), syntax), RAMP
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        pixels = make_pixels(48, 64, bits=8).astype(np.uint8)
        make_dicom(path, pixels=pixels, **eight_bits)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        return _replace_stream(path, stream.getvalue(), syntax), pixels
    pixels = make_pixels(48, 64)
    if syntax in (JPEGLossless, JPEGLosslessSV1):
        _transcode_with_gdcm(make_dicom(path, pixels=pixels), syntax)
    elif syntax == JPEGLSNearLossless:
        dataset = dcmread(make_dicom(path, pixels=pixels))
        dataset.compress(syntax, jls_error=2, generate_instance_uid=False)
        dataset.save_as(path)
    elif syntax == JPEG2000:
        dataset = dcmread(make_dicom(path, pixels=pixels))
        dataset.compress(syntax, j2k_cr=[4], generate_instance_uid=False)
        dataset.save_as(path)
    else:
        make_dicom(path, pixels=pixels, transfer_syntax=syntax)
    return path, pixels


def _replace_stream(path: Path, stream: bytes, syntax: UID) -> Path:
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    dataset["PixelData"].VR = "OB"
    dcmwrite(path, dataset)
    return path


def _transcode_with_gdcm(path: Path, syntax: UID) -> None:
    kind = {
        JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
        JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    }[syntax]
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(kind))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def decode(path: Path, *, frame: int = 0) -> np.ndarray:
    with opened_dicom(path, max_pixels=10**7) as dataset:
        return read_frame(dataset, pixel_layout(dataset, max_pixels=10**7), frame=frame)[0]


def refusal_of(path: Path, *, frame: int = 0) -> RejectionCode:
    with pytest.raises(Refusal) as caught:
        decode(path, frame=frame)
    return caught.value.rejection.code


def stream_of(path: Path) -> bytes:
    return next(generate_frames(dcmread(path).PixelData, number_of_frames=1)).rstrip(b"\0")


def test_every_syntax_that_is_read_is_tested_here() -> None:
    compressed = {syntax for syntax, plugins in DECODERS.items() if plugins != ("",)}
    assert compressed == {str(syntax) for syntax in (*LOSSLESS, *LOSSY)}


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: s.name)
def test_a_lossless_syntax_gives_the_very_pixels(tmp_path: Path, syntax) -> None:
    path, pixels = write_compressed(tmp_path / "image.dcm", syntax)
    assert dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(decode(path), pixels)


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda s: s.name)
def test_a_lossy_syntax_gives_nearly_the_pixels(tmp_path: Path, syntax) -> None:
    path, pixels = write_compressed(tmp_path / "image.dcm", syntax)
    assert dcmread(path).file_meta.TransferSyntaxUID == syntax
    error = np.abs(decode(path).astype(int) - pixels)
    assert error.mean() < 0.02 * int(pixels.max())


@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY], ids=lambda s: s.name)
def test_a_torn_stream_is_never_silent(tmp_path: Path, syntax, share: float) -> None:
    path, _ = write_compressed(tmp_path / "image.dcm", syntax)
    stream = stream_of(path)
    torn = stream[: int(share * len(stream))]
    assert refusal_of(_replace_stream(path, torn, syntax)) in (
        RejectionCode.PIXEL_DATA_TRUNCATED,
        RejectionCode.DECODE_FAILED,
    )


# Not RLE, which has no end mark, and not the JPEG family before JPEG-LS: its decoders fill what is missing, so there the end mark
# is the only guard.
@pytest.mark.parametrize(
    "syntax",
    [JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K],
    ids=lambda s: s.name,
)
def test_a_torn_stream_with_a_forged_end_mark_is_refused_by_its_decoder(tmp_path: Path, syntax) -> None:
    path, _ = write_compressed(tmp_path / "image.dcm", syntax)
    stream = stream_of(path)
    forged = stream[: int(0.6 * len(stream))] + b"\xff\xd9"
    assert refusal_of(_replace_stream(path, forged, syntax)) == RejectionCode.DECODE_FAILED


def test_frames_are_read_by_number_natively_and_encapsulated(tmp_path: Path) -> None:
    frames = np.stack([make_pixels(32, 40, seed=k) for k in range(3)])
    for syntax in ("1.2.840.10008.1.2.1", RLELossless, JPEGLSLossless):
        path = make_dicom(tmp_path / "image.dcm", pixels=frames, NumberOfFrames=3)
        if syntax != "1.2.840.10008.1.2.1":
            dataset = dcmread(path)
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
        for k in range(3):
            np.testing.assert_array_equal(decode(path, frame=k), frames[k])


def test_frames_are_found_by_the_extended_offset_table(tmp_path: Path) -> None:
    frames = np.stack([make_pixels(32, 40, seed=k) for k in range(3)])
    path = make_dicom(tmp_path / "image.dcm", pixels=frames, NumberOfFrames=3)
    dataset = dcmread(path)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    streams = list(generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(streams)
    dataset.save_as(path)
    np.testing.assert_array_equal(decode(path, frame=2), frames[2])


def test_a_frame_beyond_the_last_is_refused(tmp_path: Path) -> None:
    assert refusal_of(make_dicom(tmp_path / "image.dcm"), frame=1) == RejectionCode.HEADER_MALFORMED


def test_fewer_frames_than_the_header_says_are_truncated(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "image.dcm", NumberOfFrames=2)
    assert refusal_of(path) == RejectionCode.PIXEL_DATA_TRUNCATED


def test_another_number_of_samples_than_the_header_says_is_refused_before_decoding(tmp_path: Path) -> None:
    path, _ = write_compressed(tmp_path / "image.dcm", JPEGBaseline8Bit)
    stream = io.BytesIO()
    Image.new("RGB", (64, 48)).save(stream, "JPEG")
    _replace_stream(path, stream.getvalue(), JPEGBaseline8Bit)
    with pytest.raises(Refusal, match="3 samples per pixel, the header says 1"):
        decode(path)


def test_a_size_hidden_in_the_boxes_of_a_jp2_file_is_seen(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (300, 200)).save(stream, "JPEG2000", no_jp2=False)
    path, _ = write_compressed(tmp_path / "image.dcm", JPEG2000Lossless)
    with pytest.raises(Refusal, match="200 x 300 pixels, the header says 48 x 64"):
        decode(_replace_stream(path, stream.getvalue(), JPEG2000Lossless))


def test_a_compressed_stream_of_unknown_form_is_refused(tmp_path: Path) -> None:
    path, _ = write_compressed(tmp_path / "image.dcm", JPEGLSLossless)
    with pytest.raises(Refusal, match="does not state its size"):
        decode(_replace_stream(path, bytes(range(200)) + b"\xff\xd9", JPEGLSLossless))


def test_one_bit_pixels_are_unpacked(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (32, 40), dtype=np.uint8)
    path = make_dicom(
        tmp_path / "image.dcm",
        pixels=np.zeros((32, 40), np.uint8),
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelData=np.packbits(bits, bitorder="little").tobytes(),
    )
    np.testing.assert_array_equal(decode(path), bits)


def test_all_of_pydicoms_own_images_decode_as_pydicom_decodes_them_or_are_refused() -> None:
    n_equal = 0
    for name in get_testdata_files("**/*.dcm"):
        try:
            with opened_dicom(name, max_pixels=10**7) as dataset:
                layout = pixel_layout(dataset, max_pixels=10**7)
                raw, _ = read_frame(dataset, layout)
        except Refusal:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = pixel_array(name, index=0, raw=True)
        except (AttributeError, ValueError):  # files whose listed attributes are right and others are not
            continue
        values = stored_values(raw, layout) if layout.samples == 1 else raw
        np.testing.assert_array_equal(values, expected, err_msg=Path(name).name)
        n_equal += 1
    assert n_equal >= 40
