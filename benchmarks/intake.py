"""What intake adds to decoding: images a second on one core, for each transfer syntax, beside its fastest decoder alone.

Usage: python benchmarks/intake.py [--images 3]

Writes synthetic 12-bit radiographs of 2500 x 2048 pixels in each syntax, then times on one thread (1) each decoder that pydicom
offers for it, on the stream alone, and (2) intake's pixel pass and the shard writer, from file to 512-pixel member; then the
header pass, and a whole intake on all cores. Prints the tables of benchmarks/results/intake.md.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import gdcm
import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID

ROWS, COLUMNS = 2500, 2048
SYNTAXES = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG lossless .70": "1.2.840.10008.1.2.4.70",
    "JPEG 2000 lossless": "1.2.840.10008.1.2.4.90",
}


def make_file(path: Path, syntax: str) -> None:
    """A smooth body with quantum noise, 12 bits in 16: as hard to compress as a radiograph."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:ROWS, 0:COLUMNS] / ROWS
    clean = 400 + 2800 * np.exp(-(((x - 0.4) / 0.25) ** 4)) * (0.7 + 0.3 * np.sin(9 * y + 5 * x))
    pixels = np.clip(clean + rng.normal(0, 0.25 * np.sqrt(clean), clean.shape), 0, 4095).astype(np.uint16)
    dataset = Dataset()
    for keyword, value in {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "SOPInstanceUID": "2.25.1",
        "StudyInstanceUID": "2.25.2",
        "SeriesInstanceUID": "2.25.3",
        "Modality": "DX",
        "PatientID": "1",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": 2048,
        "WindowWidth": 4096,
        "PixelData": pixels.tobytes(),
    }.items():
        setattr(dataset, keyword, value)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(SYNTAXES["uncompressed"])
    dataset.preamble = bytes(128)
    if syntax == SYNTAXES["JPEG lossless .70"]:
        dcmwrite(path, dataset, enforce_file_format=True)
        transcode_with_gdcm(path)
        return
    if UID(syntax).is_encapsulated:
        plugin = "gdcm" if syntax == SYNTAXES["RLE"] else ""
        dataset.compress(UID(syntax), encoding_plugin=plugin, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dcmwrite(path, dataset, enforce_file_format=True)


def transcode_with_gdcm(path: Path) -> None:
    """To JPEG lossless, which pydicom does not write."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    if not reader.Read():
        raise SystemExit("gdcm cannot read the file.")
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise SystemExit("gdcm cannot encode the file.")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))  # empties the file
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()


def seconds_of(call: Callable[[], object], *, n: int) -> float:
    """The shortest of `n` calls, after one that is not counted: what else runs on the machine only adds."""
    call()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def decoders_of(path: Path, syntax: str) -> dict[str, Callable[[], object]]:
    """Name -> a call that decodes the stream, the file being in memory. Uncompressed: reads the file whole."""
    decoder = get_decoder(UID(syntax))
    if not UID(syntax).is_encapsulated:
        return {"pydicom": lambda: dcmread(path).pixel_array}
    dataset = dcmread(path)
    return {
        plugin: lambda plugin=plugin: decoder.as_array(dataset, raw=True, decoding_plugin=plugin)
        for plugin in decoder.available_plugins
    }


def decode_table(folder: Path, *, n: int) -> None:
    """One row a syntax: the decoder alone, and intake from file to shard."""
    from vet_extensions.intake.image import ImageReader, StoredImage
    from vet_extensions.intake.options import IntakeOptions
    from vet_extensions.intake.sources.dicom_folder import DicomFolder
    from vet_extensions.shards.writer import ShardWriter

    reader = ImageReader(IntakeOptions(), DicomFolder(folder))
    print(
        "| transfer syntax | fastest decoder | alone, images/s | file to shard, images/s | ratio |\n|---|---|---|---|---|"
    )
    for name, syntax in SYNTAXES.items():
        path = folder / "image.dcm"
        make_file(path, syntax)
        decoders = decoders_of(path, syntax)
        once = {name: seconds_of(call, n=1) for name, call in decoders.items()}
        decoder = min(once, key=lambda name: once[name])
        with ShardWriter(folder / name.replace(" ", "-")) as writer:
            numbers = iter(range(10**6))

            def to_shard(path: Path = path, writer: ShardWriter = writer, numbers=numbers) -> None:
                image = reader((path.name, 0))
                if not isinstance(image, StoredImage):
                    raise SystemExit(f"The benchmark's own file was refused: {image}")
                writer.add(f"{next(numbers):016x}", image.pixels)

            # By turns, so that what else the machine does falls upon both.
            pairs = [(seconds_of(decoders[decoder], n=1), seconds_of(to_shard, n=1)) for _ in range(n)]
            alone, whole = (min(times) for times in zip(*pairs, strict=True))
        print(f"| {name} | {decoder} | {1 / alone:.1f} | {1 / whole:.1f} | {alone / whole:.2f} |", flush=True)


def step_table(folder: Path, *, n: int) -> None:
    """What the steps after decoding cost, and a header."""
    from vet_extensions.intake.collimation import visible_field
    from vet_extensions.intake.colour import colour_to_grey
    from vet_extensions.intake.decode import read_frame
    from vet_extensions.intake.dicom import largest_file, open_dicom, pixel_layout
    from vet_extensions.intake.opening import opened
    from vet_extensions.intake.pixels import to_grey
    from vet_extensions.intake.resize import reduce_to, to_bits
    from vet_extensions.intake.sources.dicom_folder import DicomFolder

    path, source = folder / "image.dcm", DicomFolder(folder)
    make_file(path, SYNTAXES["uncompressed"])
    with (
        opened(source, path.name, max_bytes=largest_file(10**8)) as file,
        open_dicom(file, with_pixels=True, max_pixels=10**8) as dataset,
    ):
        layout = pixel_layout(dataset, max_pixels=10**8)
        raw, _ = read_frame(dataset, layout)
        grey = to_grey(raw, dataset, layout)
        rgb = np.repeat((raw >> 4).astype(np.uint8)[..., None], 3, axis=2)
        steps = {
            "grey scale (window)": lambda: to_grey(raw, dataset, layout),
            "size and depth": lambda: to_bits(reduce_to(grey, longest_side_px=512), bits=8),
            "search for a collimation border": lambda: visible_field(grey),
            "colour to grey, instead of the grey scale": lambda: colour_to_grey(rgb, bits=8, policy="neutral"),
        }
        print("\n| step | ms |\n|---|---|")
        for name, step in steps.items():
            print(f"| {name} | {1000 * seconds_of(step, n=max(n, 9)):.2f} |")


def header_table(folder: Path, *, n: int) -> None:
    """Files a second of the header pass: the file above, and one with the 150 elements of a hospital's archive."""
    from vet_extensions.intake.deidentify import Pseudonyms
    from vet_extensions.intake.header import HeaderReader
    from vet_extensions.intake.options import IntakeOptions
    from vet_extensions.intake.sources.dicom_folder import DicomFolder

    folder.mkdir()
    make_file(folder / "few.dcm", SYNTAXES["uncompressed"])
    dataset = dcmread(folder / "few.dcm")
    private = dataset.private_block(0x0019, "BENCHMARK", create=True)
    for number in range(150 - len(dataset)):
        private.add_new(number, "LO", f"value {number} of a modality's own")
    dcmwrite(folder / "many.dcm", dataset)
    header = HeaderReader(Pseudonyms("benchmark salt"), IntakeOptions(), DicomFolder(folder))
    print("\n| header pass | files/s |\n|---|---|")
    for name in ("few", "many"):
        elements = len(dcmread(folder / f"{name}.dcm", stop_before_pixels=True))

        def hundred_times(name: str = name) -> None:
            for _ in range(100):
                answer = header((f"{name}.dcm", "file", None))
                if not isinstance(answer, tuple):
                    raise SystemExit(f"The benchmark's own file was refused: {answer}")

        print(f"| {elements} elements | {100 / seconds_of(hundred_times, n=max(n, 9)):.0f} |")


def whole_table(folder: Path, *, n_files: int) -> None:
    """A whole intake of JPEG lossless files, both passes, tables and publishing, with 1 worker and with one for each core."""
    from vet_extensions.intake.options import IntakeOptions
    from vet_extensions.intake.run import run_intake

    source, cores = folder / "archive", len(os.sched_getaffinity(0))
    source.mkdir(parents=True)
    make_file(source / "0.dcm", SYNTAXES["JPEG lossless .70"])
    dataset = dcmread(source / "0.dcm")
    for number in range(1, n_files):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.1{number}"
        dcmwrite(source / f"{number}.dcm", dataset)
    rates = []
    print("\n| whole intake, JPEG lossless | images/s |\n|---|---|")
    for n_workers in sorted({1, cores}):
        start = time.perf_counter()
        summary = run_intake(
            source, folder / f"out{n_workers}", options=IntakeOptions(salt="benchmark salt"), n_workers=n_workers
        )
        if summary.n_accepted != n_files:
            raise SystemExit(f"{summary.n_rejected} of the benchmark's own files were refused: {summary.rejected}")
        rates.append(n_files / (time.perf_counter() - start))
        print(f"| {n_workers} workers | {rates[-1]:.1f} ({rates[-1] / rates[0]:.2f} times 1 worker's) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3, help="timed calls of each kind")
    n = parser.parse_args().images
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        decode_table(Path(folder), n=n)
        step_table(Path(folder), n=n)
        header_table(Path(folder) / "headers", n=n)
        whole_table(Path(folder) / "whole", n_files=16 * n)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
