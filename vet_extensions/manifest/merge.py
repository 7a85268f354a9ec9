"""Manifests of several parts to the manifest of the whole. Used by `vetdino merge`, which has decided what stays."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vet_extensions.schema import Split


def merge_manifests(
    paths: Sequence[Path], wanted: Sequence[pa.Array], *, order: pa.Table, splits: Mapping[str, Split]
) -> pa.Table:
    """The rows of all manifests that are wanted, as the manifest of one run over everything would have them.

    wanted: for each manifest the ids of the images to keep; no id is wanted of two. order: columns image_id and patient_id of
    the whole, in its order; the patient may be another than in a part that saw only some files of the study. splits: patient id
    -> split, for every patient.
    """
    pieces = []
    for path, ids in zip(paths, wanted, strict=True):
        table = pq.read_table(path).replace_schema_metadata(None)
        pieces.append(table.filter(pc.is_in(table["image_id"], value_set=ids)))
    merged = pa.concat_tables(pieces)
    merged = merged.take(pc.index_in(order["image_id"], value_set=merged["image_id"].combine_chunks()))
    assert merged["image_id"].null_count == 0, "every image of the whole must be in one of the manifests"
    patients = order["patient_id"].combine_chunks()
    known = patients.dictionary_encode()
    names = pa.array([str(splits[patient]) for patient in known.dictionary.to_pylist()], pa.string())
    for name, column in (("patient_id", patients), ("split", names.take(known.indices))):
        merged = merged.set_column(merged.column_names.index(name), name, column)
    return merged.combine_chunks()
