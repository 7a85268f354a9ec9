"""Volumes of one's own with label maps: a table of NIfTI files and DICOM series beside NIfTI label maps (`volume_table`)."""

from pathlib import Path

import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.options import whole
from vet_extensions.evaluation.datasets.registry import VOLUME_SETS
from vet_extensions.evaluation.datasets.splitting import read_cutting
from vet_extensions.evaluation.datasets.volume_files import parse_window, read_grid
from vet_extensions.evaluation.datasets.volume_sets import Case, collect
from vet_extensions.evaluation.datasets.volumes import Volumes
from vet_extensions.intake.sources.listing import split_of
from vet_extensions.intake.sources.tables import read_columns


@VOLUME_SETS.register("volume_table")
def volume_table(
    root: Path,
    *,
    file: str,
    classes: str,
    window: str = "",
    channel: str = "0",
    every: str = "1",
    val: str = "0.1",
    test: str = "0.2",
    seed: str = "0",
) -> Volumes:
    """Volumes that a CSV, TSV or Parquet table lists: columns path (a NIfTI file or a folder of a DICOM series), mask (a NIfTI
    label map), and where they exist patient and split.

    file: its name in `root`, from where the paths in it count. classes: "background+liver+spleen", the names of the numbers in
    the label maps, from 0. window and channel as for `labelled_volumes.volume_table`; every as in `Volumes`.
    Errors: UserError for a missing table, column or file, and for a label map that does not lie on its image.
    """
    rows = read_columns(root / file, ["path", "mask"], optional=["patient", "split"])
    columns = (rows[name].to_pylist() for name in ("path", "mask", "patient", "split"))
    cases = [
        Case(image, root / image, root / mask, split=str(split_of(split) or "") if split else "", patient=patient)
        for image, mask, patient, split in zip(*columns, strict=True)
    ]
    if 0 < sum(not case.split for case in cases) < len(cases):
        raise UserError(
            "The table's column 'split' has empty cells beside others. Fill all, or none to have the split cut."
        )
    names = tuple(classes.split("+"))
    if len(set(names)) < 2:
        raise UserError(f"classes={classes} must name the background and at least one other, such as background+liver.")
    is_named = any(case.patient for case in cases)
    policy = {} if is_named else {"patients": "not known: every volume counts as one, and the split may leak"}
    volumes = collect(
        "volume table",
        cases,
        names,
        window=parse_window(window, default=None),
        channel=whole(channel, key="channel"),
        policy=policy,
        published={},
        cutting=read_cutting(val, test, seed=seed),
        every=every,
    )
    for row, case in enumerate(cases, start=1):
        _refuse_apart(case, row=row)
    return volumes


def _refuse_apart(case: Case, *, row: int) -> None:
    """Errors: UserError where the label map lies elsewhere than the image, by more than half a voxel at a corner."""
    image, label = read_grid(case.image), read_grid(case.label)
    if image.shape != label.shape:
        raise UserError(
            f"Row {row} of the table: the label map has {list(label.shape)} voxels, the image {list(image.shape)}. Resample the "
            "label map to the image."
        )
    away = float(np.abs(image.corners - label.corners).max())
    if away > min(image.spacing) / 2:
        raise UserError(
            f"Row {row} of the table: the label map lies up to {away:.1f} mm away from its image (spacings "
            f"{_shown(label.spacing)} and {_shown(image.spacing)} mm). It belongs to another series, or was turned when it was "
            "converted: write it on the image's own grid."
        )


def _shown(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{mm:.2f}" for mm in spacing)
