"""A folder of DICOM slices as one volume: ordered by place, checked for gaps, in modality units. `volume_files` calls it.

Classic files of one slice and enhanced files of many frames (CT, MR, PET) are read alike: each frame is a slice with a place.
Only positions and orientations decide the order; file names and InstanceNumber are not looked at. What is no even, straight stack
of one series is refused. Standards: PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups), C.11.1 (modality LUT).
Shape legend: N slices along the stack, rows and columns as the files store them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from vet_extensions.errors import UserError
from vet_extensions.intake.decode import read_frame
from vet_extensions.intake.dicom import number, open_dicom, pixel_layout, text, whole_number
from vet_extensions.intake.opening import BoundedFile
from vet_extensions.intake.pixels import apply_modality, stored_values
from vet_extensions.intake.refusal import Refusal

MAX_PIXELS = 2**26
"""Of one slice."""

_HEADER = (
    "SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows",
    "Columns", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_OTHER_FILES = ("DICOMDIR", "THUMBS.DB", "DESKTOP.INI")
_ROUNDING_MM, _OF_A_GAP = 0.1, 0.25
"""Writers round positions to a tenth of a millimetre; a gap may differ by that, but not by a quarter of the distance."""
_SAME_DIRECTION, _SAME_PLACE_MM, _SAME_SPACING_MM = 1e-3, 1e-3, 1e-3
_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's axes point to the patient's left and back, NIfTI's to the right and front; both point up."""


@dataclass(frozen=True)
class SeriesGrid:
    """Where the voxels are. shape: (N, rows, columns). spacing: mm along each. affine: [4, 4], index of slice, row and column ->
    mm to the patient's right, front and up, as in NIfTI."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class _Slice:
    """One frame. orientation: the directions of growing columns and rows. spacing: mm between rows, between columns. rescale:
    where the slope is stated, of an enhanced file; None: with the pixels."""

    path: Path
    frame: int
    series: str
    frame_of_reference: str
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    rescale: Dataset | None


def series_files(folder: Path) -> list[Path]:
    """The files that count as slices, by name: all but hidden ones and tables of contents."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name.upper() not in _OTHER_FILES
    )


def series_grid(folder: Path) -> SeriesGrid:
    """From the headers alone. Errors: UserError for what is no even stack of one series."""
    return _ordered(folder)[1]


def series_values(folder: Path) -> tuple[NDArray[np.float32], SeriesGrid]:
    """[N, rows, columns] in modality units (Hounsfield units of CT), and its grid.

    Errors: UserError, as `series_grid`, and for a slice that cannot be decoded.
    """
    slices, grid = _ordered(folder)
    values = np.empty(grid.shape, dtype=np.float32)
    of_file: dict[Path, list[int]] = {}
    for index, found in enumerate(slices):
        of_file.setdefault(found.path, []).append(index)
    for path, indices in of_file.items():  # an enhanced file is opened once
        with _dataset(path, with_pixels=True) as dataset:
            layout = pixel_layout(dataset, max_pixels=MAX_PIXELS)
            if not layout.is_monochrome:
                raise UserError(
                    f"Series '{folder.name}': '{path.name}' is in colour ({layout.photometric}). Only grey is read."
                )
            for index in indices:
                raw, _ = read_frame(dataset, layout, frame=slices[index].frame)
                rescale = slices[index].rescale
                source = dataset if rescale is None else rescale
                # Of each bit pattern once, then looked up, which halves the time of reading.
                patterns = stored_values(np.arange(2 ** (8 * raw.itemsize)), layout)
                values[index] = apply_modality(source, patterns, layout).astype(np.float32)[raw]
    return values, grid


def _ordered(folder: Path) -> tuple[list[_Slice], SeriesGrid]:
    slices = [found for path in series_files(folder) for found in _read_header(path)]
    _refuse_mixed(folder, slices)
    along_row, along_column = np.array(slices[0].orientation).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    positions = np.array([found.position for found in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[index] for index in order], positions[order]
    _refuse_uneven(folder, slices, places=positions @ normal)
    _refuse_tilted(folder, positions, normal=normal, pixel_mm=max(slices[0].spacing))
    n, (rows, columns), (row_mm, column_mm) = len(slices), slices[0].size, slices[0].spacing
    gap_mm = float((positions[-1] - positions[0]) @ normal) / (n - 1)
    affine = np.eye(4)
    # The row index goes down the columns, the column index along the rows (PS3.3 C.7.6.2.1.1).
    affine[:3, :3] = (
        np.stack([normal * gap_mm, along_column * row_mm, along_row * column_mm], axis=1) * _TO_RAS[:, None]
    )
    affine[:3, 3] = positions[0] * _TO_RAS
    return slices, SeriesGrid((n, rows, columns), (gap_mm, row_mm, column_mm), affine)


@contextmanager
def _dataset(path: Path, *, with_pixels: bool) -> Iterator[Dataset]:
    """The file, every fault inside the block told as a UserError."""
    try:
        with (
            path.open("rb") as file,
            open_dicom(
                BoundedFile(file, path.stat().st_size), with_pixels=with_pixels, max_pixels=MAX_PIXELS, also=_HEADER
            ) as dataset,
        ):
            yield dataset
    except Refusal as refusal:
        raise UserError(
            f"Series '{path.parent.name}': '{path.name}' cannot be read ({refusal.rejection.code}: {refusal.rejection.detail}). "
            "Download it again, or take what is no slice out of the folder."
        ) from None
    except OSError as error:
        raise UserError(
            f"Series '{path.parent.name}': '{path.name}' cannot be read ({type(error).__name__})."
        ) from None


def _read_header(path: Path) -> list[_Slice]:
    with _dataset(path, with_pixels=False) as dataset:
        n_frames = whole_number(dataset, "NumberOfFrames", default=1)
        groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        if len(groups) != n_frames and (groups or n_frames > 1):
            raise UserError(
                f"Series '{path.parent.name}': '{path.name}' has {n_frames} frames and states the places of {len(groups)}. Write "
                "one file for each slice, or convert the series to NIfTI."
            )
        return [
            _slice(path, frame, dataset, groups=(group, shared) if groups else ())
            for frame, group in enumerate(groups or [dataset])
        ]


def _slice(path: Path, frame: int, dataset: Dataset, *, groups: Sequence[Dataset]) -> _Slice:
    """groups: of an enhanced file, those of the frame and the shared ones, of which the first that has an attribute counts."""

    def holder(sequence: str) -> Dataset | None:
        return next((group[sequence].value[0] for group in groups if group.get(sequence)), None)

    def numbers(keyword: str, count: int, *, sequence: str) -> tuple[float, ...]:
        source = holder(sequence) if groups else dataset
        values = [None] * count if source is None else [number(source, keyword, index=i) for i in range(count)]
        known = tuple(value for value in values if value is not None and np.isfinite(value))
        if len(known) != count:
            raise UserError(
                f"Series '{path.parent.name}': '{path.name}' states no {keyword}, so it has no place in a volume. Take it out of "
                "the folder if it is a localiser or a screen capture; otherwise export the series again."
            )
        return known

    orientation = numbers("ImageOrientationPatient", 6, sequence="PlaneOrientationSequence")
    spacing = numbers("PixelSpacing", 2, sequence="PixelMeasuresSequence")
    axes = np.array(orientation).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2) or min(spacing) <= 0:
        raise UserError(
            f"Series '{path.parent.name}': '{path.name}' has directions that are not at right angles, or a PixelSpacing that is "
            "not above 0. Export the series again."
        )
    return _Slice(
        path=path,
        frame=frame,
        series=text(dataset, "SeriesInstanceUID"),
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        size=(whole_number(dataset, "Rows"), whole_number(dataset, "Columns")),
        position=numbers("ImagePositionPatient", 3, sequence="PlanePositionSequence"),
        orientation=orientation,
        spacing=spacing,
        rescale=holder("PixelValueTransformationSequence"),
    )


def _refuse_mixed(folder: Path, slices: Sequence[_Slice]) -> None:
    """Errors: UserError for fewer than two slices, and for those of several series, places, sizes, orientations or spacings."""
    series = Counter(found.series for found in slices)
    if len(series) > 1:
        sizes = ", ".join(str(n) for _, n in series.most_common(8))
        raise UserError(
            f"The folder '{folder.name}' holds {len(series)} series, of {sizes} slices. Put each into a folder of its own."
        )
    if len(slices) < 2:
        raise UserError(
            f"The folder '{folder.name}' holds {len(slices)} DICOM slices; a volume has at least 2. Give the folder with the "
            "files of the series itself; a localiser is none."
        )
    first = slices[0]
    traits: dict[str, Callable[[_Slice], bool]] = {
        "FrameOfReferenceUID": lambda found: found.frame_of_reference == first.frame_of_reference,
        "size (Rows, Columns)": lambda found: found.size == first.size,
        "ImageOrientationPatient": lambda found: np.allclose(
            found.orientation, first.orientation, atol=_SAME_DIRECTION
        ),
        "PixelSpacing": lambda found: np.allclose(found.spacing, first.spacing, rtol=0, atol=_SAME_SPACING_MM),
    }
    for trait, agrees in traits.items():
        others = [found for found in slices if not agrees(found)]
        if others:
            raise UserError(
                f"Series '{folder.name}': {len(others)} of {len(slices)} slices have another {trait} than the rest, such as "
                f"'{others[0].path.name}' beside '{first.path.name}'. Put each stack, and localisers, into folders of their own."
            )


def _refuse_uneven(folder: Path, slices: Sequence[_Slice], *, places: NDArray[np.float64]) -> None:
    """places: [N] mm along the normal, rising."""
    gaps = np.diff(places)
    if n_same := int((gaps < _SAME_PLACE_MM).sum()):
        index = int(np.argmin(gaps))
        raise UserError(
            f"Series '{folder.name}': {n_same} of {len(slices)} slices lie where another one does, such as "
            f"'{slices[index].path.name}' and '{slices[index + 1].path.name}'. They are copies, or several phases, echoes or "
            "b-values: put one of each into a folder of its own."
        )
    usual = float(np.median(gaps))
    uneven = np.abs(gaps - usual) > min(_ROUNDING_MM, _OF_A_GAP * usual) + 0.01 * usual
    if uneven.any():
        index = int(np.argmax(np.abs(gaps - usual) * uneven))
        raise UserError(
            f"Series '{folder.name}': the slices are not even. Between slices {index + 1} and {index + 2} of {len(slices)}, "
            f"counted along the stack ('{slices[index].path.name}' and '{slices[index + 1].path.name}'), are {gaps[index]:.2f} "
            f"mm, usual are {usual:.2f}; {int(uneven.sum())} of {len(gaps)} gaps differ. Download what is missing, or resample "
            "the series and give it as NIfTI."
        )


def _refuse_tilted(
    folder: Path, positions: NDArray[np.float64], *, normal: NDArray[np.float64], pixel_mm: float
) -> None:
    """Errors: UserError where slices are shifted sideways by more than a pixel, as a tilted gantry does."""
    offsets = positions - positions[0]
    sideways = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    worst = int(np.argmax(sideways))
    if sideways[worst] > pixel_mm:
        angle = np.degrees(np.arctan2(sideways[worst], offsets[worst] @ normal))
        raise UserError(
            f"Series '{folder.name}': its slices are shifted sideways by up to {sideways[worst]:.1f} mm (a gantry tilted by "
            f"{angle:.1f} degrees). Straighten it, as dcm2niix does, and give it as NIfTI."
        )
