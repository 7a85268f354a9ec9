"""A small intake folder made directly from arrays, for tests that train or embed and do not care about DICOM."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vet_extensions.manifest import write_manifest
from vet_extensions.manifest.build import SORT_KEYS, build_table
from vet_extensions.schema import ImageRecord, IntakeFolder, Split, View
from vet_extensions.shards import ShardWriter

VIEWS = (View.LATERAL_LEFT, View.VD)
BY_TURNS = (Split.TRAIN, Split.TEST, Split.TRAIN, Split.TEST, Split.TRAIN, Split.VAL)


def make_intake(
    root: Path,
    *,
    n_studies: int = 12,
    size_px: int = 48,
    views=VIEWS,
    split: Split | None = Split.TRAIN,
    findings: Sequence[str] = (),
) -> Path:
    """`n_studies` studies of one patient each with one smooth random image per view; returns the folder.

    split: of all patients; None gives every split its share. findings: labels, each of which half of the studies have.
    """
    folder = IntakeFolder(root)
    records = [
        ImageRecord(
            image_id=f"i{study:03d}{k}",
            study_id=f"s{study:03d}",
            patient_id=f"p{study:03d}",
            view=view,
            view_source="test",
            rows=size_px,
            columns=size_px,
            stored_rows=size_px,
            stored_columns=size_px,
            labels={finding: study // 6 >> place & 1 for place, finding in enumerate(findings)},
        )
        for study in range(n_studies)
        for k, view in enumerate(views)
    ]
    records.sort(key=lambda record: tuple(getattr(record, key) for key in SORT_KEYS))
    write_images(folder, records, size_px)
    splits = {record.patient_id: split or BY_TURNS[int(record.patient_id[1:]) % len(BY_TURNS)] for record in records}
    write_manifest(build_table(records, splits=splits, label_names=findings), folder.manifest)
    return root


def write_images(folder: IntakeFolder, records: list[ImageRecord], size_px: int) -> None:
    """One shard with an image a record."""
    rows, columns = np.mgrid[0:size_px, 0:size_px] / size_px
    with ShardWriter(folder.shards) as writer:
        for i, record in enumerate(records):
            a, b, c = np.random.default_rng(i).uniform(1, 9, 3)
            image = 127 + 60 * np.sin(a * rows + b) + 60 * np.cos(c * columns + a)
            writer.add(record.image_id, image.astype(np.uint8))
