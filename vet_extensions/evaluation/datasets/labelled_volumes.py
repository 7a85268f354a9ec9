"""Volumes with labels: a table of NIfTI files and DICOM series (`volume_table`), given to the protocols as axial slices.

The volume is the study: a protocol of images scores its slices, one of studies the volume.
Shape legend: v volumes, n slices, Z slices of a volume.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.datasets.assembly import assemble, present_files
from vet_extensions.evaluation.datasets.generic import read_label_table
from vet_extensions.evaluation.datasets.options import choice, whole
from vet_extensions.evaluation.datasets.registry import DATA_SETS
from vet_extensions.evaluation.datasets.splitting import read_cutting
from vet_extensions.evaluation.datasets.volume_files import (
    HeldSlices,
    describe_window,
    parse_window,
    read_grey,
    read_grid,
    volume_content,
)


@DATA_SETS.register("volume_table")
def volume_table(
    root: Path,
    *,
    file: str,
    label: str = "label",
    labels: str = "",
    classes: str = "",
    facts: str = "",
    window: str = "",
    channel: str = "0",
    every: str = "1",
    missing: str = "refuse",
    val: str = "0.1",
    test: str = "0.2",
    seed: str = "0",
) -> LabelledImages:
    """Volumes that a table lists, with the columns and keys of `generic.table`; a path is a NIfTI file or a folder of a series.

    Every row is a study, whatever the table calls it, and its labels are those of all of its slices. window:
    `volume_files.parse_window`, percentiles of each volume where it is not given. channel: of 4-D NIfTI files. every: of the
    axial slices each so-many-th is taken, in every split.
    Errors: UserError, as `generic.table`, and for a volume that is listed twice or cannot be read.
    """
    listed = read_label_table(root / file, label=label, labels=labels, classes=classes, facts=facts)
    named = [root / name for name in listed.found.path]
    is_there, _ = present_files(named, missing=choice(missing, ("refuse", "skip"), key="missing"), name="the table")
    found = listed.found.take(is_there)
    paths = [path for path, here in zip(named, is_there, strict=True) if here]
    if n_repeated := len(paths) - len(set(paths)):
        raise UserError(f"The table lists {n_repeated} volumes more than once. Give each volume one row.")
    shown, number, step = (
        parse_window(window, default=None),
        whole(channel, key="channel"),
        whole(every, key="every", least=1),
    )
    places = [(row, z) for row, path in enumerate(paths) for z in range(0, read_grid(path).shape[0], step)]
    volume_of = np.array([row for row, _ in places])
    slices = replace(found, study=found.path).take(volume_of)
    policy = {
        "images": "axial slices" + (f", one of every {step}" if step > 1 else "") + "; the volume is the study",
        "slice labels": "those of the whole volume, for each of its slices",
        "window": describe_window(shown),
        "channel": str(number),
    }
    return assemble(
        replace(slices, path=np.array([f"{found.path[row]}#{z}" for row, z in places])),
        listed.describe("volume table", policy=policy),
        reader=HeldSlices(partial(_grey, tuple(paths), window=shown, channel=number), places),
        cutting=read_cutting(val, test, seed=seed),
        content=[volume_content(path) for path in paths],
    )


def _grey(paths: Sequence[Path], row: int, *, window: tuple[float, float] | None, channel: int) -> NDArray[np.uint16]:
    return read_grey(paths[row], window=window, channel=channel)
