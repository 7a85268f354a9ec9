"""Predicted label maps as files: NIfTI on the grid of the volume's own image, PNG for images. `run` asks for a writer.

A file is named by the number of its volume or image in the order of the data set, never by a file or a patient. It is written
under another name and renamed, so that it is whole or not there.
"""

import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.dicom_series import series_grid
from vet_extensions.evaluation.datasets.volume_files import import_nibabel
from vet_extensions.evaluation.segmentation.judging import Keep
from vet_extensions.evaluation.segmentation.sets import SegmentationSet

LISTING_FILE = "cases.csv"
_SCANNER = 1
"""NIfTI's code of a transform to the coordinates of the scanner, which those of DICOM are."""


def mask_writer(folder: Path, data: SegmentationSet, *, decoder: str, arm: str) -> Keep:
    """What writes the label maps of one trained decoder into folder/<decoder>/<arm>: volume_<n>.nii.gz, or image_<n>.png."""
    of_arm = folder / decoder / quote(arm, safe=":#")  # a backbone's name may hold what no file name may
    volumes = data.volumes
    if volumes is None:
        return lambda number, classes: _write_png(of_arm / f"image_{number}.png", classes)
    return lambda number, classes: write_label_map(
        of_arm / f"volume_{number}.nii.gz", classes, like=volumes.images[number]
    )


def write_listing(folder: Path, data: SegmentationSet) -> None:
    """folder/cases.csv: the number of every volume or image, and its split. Nothing that names a patient."""
    if data.volumes is None:
        kind, splits = "image", data.split.tolist()
    else:
        _, first = np.unique(data.volumes.number, return_index=True)
        kind, splits = "volume", data.split[first].tolist()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([(kind, "split"), *enumerate(splits)])
    _write(folder / LISTING_FILE, lambda path: path.write_text(text.getvalue(), encoding="utf-8"))


def write_label_map(path: Path, classes: NDArray[np.integer], *, like: Path) -> None:
    """A label map [Z, H, W], as `volume_files.read_volume` turns volumes, as NIfTI on the grid of the volume `like`.

    Voxel order, shape, affine, and the codes that say which of the header's transforms count are those of `like`: a viewer lays
    one over the other. Nothing else of its header is taken, which has fields for names and remarks. Errors: UserError.
    """
    nibabel = import_nibabel()
    source = series_grid(like) if like.is_dir() else nibabel.load(like)
    turned = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], nibabel.io_orientation(source.affine))
    canonical = classes.astype(np.uint8).transpose(2, 1, 0)[::-1, ::-1]  # axes to the right, to the front, up
    values = nibabel.apply_orientation(canonical, turned)
    assert values.shape == tuple(source.shape[:3]), "the label map has the shape of its volume"
    image = nibabel.Nifti1Image(values, source.affine)
    image.header.set_xyzt_units("mm")
    if like.is_dir():
        image.set_qform(source.affine, code=_SCANNER)
        image.set_sform(source.affine, code=_SCANNER)
    else:
        _copy_transforms(source, image)
    _write(path, partial(nibabel.save, image))


def _copy_transforms(source: Any, image: Any) -> None:
    """Both transforms of a NIfTI file with their codes, and the voxel size."""
    header = source.header
    image.header.set_zooms(header.get_zooms()[:3])
    for name in ("qform", "sform"):
        code = int(header[f"{name}_code"])
        if code:
            getattr(image, f"set_{name}")(getattr(source, f"get_{name}")(), code=code, update_affine=False)
        else:
            image.header[f"{name}_code"] = 0


def _write_png(path: Path, classes: NDArray[np.uint8]) -> None:
    is_encoded, content = cv2.imencode(".png", classes)
    assert is_encoded, "a label map of bytes is a PNG"
    _write(path, lambda unfinished: unfinished.write_bytes(content.tobytes()))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a name beside `path`, then give the file its own. Errors: UserError."""
    unfinished = path.with_name(f"partial_{path.name}")  # the end of the name decides the format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"'{path.name}' cannot be written ({error.strerror}). Make room or mend the folder, and give the same command again."
        ) from error
