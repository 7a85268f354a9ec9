"""Features of an intake folder as files that other programs read. `vetdino embed` calls it.

OUT/embedding.parquet    a row an image: image_id, study_id, patient_id, view, split, cls (the last block's, a list of floats)
OUT/cls.npy              [n, k, D] float32, the last k blocks, earliest first; OUT/mean_patch.npy [n, D] float32
OUT/patches.npy          [n, h, w, D], where asked for, float16 where that is fine enough (see `store`)
OUT/embedding.json       what made them; written last, so that it tells that the rest is whole

Rows are in the manifest's order. With format "safetensors" the arrays are tensors of OUT/features.safetensors. What is done is
kept in OUT/unfinished until all is: the same call goes on where it stood.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.backbones import open_backbone
from vet_extensions.evaluation.embedding import PATCHES
from vet_extensions.evaluation.features import OnProgress
from vet_extensions.evaluation.store import FeatureStore, feature_key
from vet_extensions.evaluation.whole_files import whole_file
from vet_extensions.manifest import Manifest
from vet_extensions.schema import IntakeFolder
from vet_extensions.shards import ShardReader

FORMATS = ("npy", "safetensors")
ABOUT, TABLE, TENSORS, UNFINISHED = "embedding.json", "embedding.parquet", "features.safetensors", "unfinished"
IDENTITY = ("image_id", "study_id", "patient_id", "view", "split")

_BATCH_BYTES = 2**26
_SAFETENSORS_NAMES = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}


def export_features(
    spec: str | Path,
    intake_root: str | Path,
    out: str | Path,
    *,
    n_blocks: int = 1,
    with_patches: bool = False,
    file_format: str = "npy",
    image_size_px: int | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Embed every image of an intake folder and write the files; returns what embedding.json says.

    spec: as `open_backbone` takes it. A finished OUT of the same question is left as it is. Raises `UserError` for a folder that
    is no intake folder, an OUT with features of something else, and what `FeatureStore.features` refuses.
    """
    root, out = Path(intake_root), Path(out)
    _check(root, file_format)
    backbone, manifest = open_backbone(spec), Manifest.open(root)
    size_px = image_size_px or backbone.image_size_px
    key = feature_key(backbone, manifest.content_hash, image_size_px=size_px)
    about = {
        "backbone": backbone.name,
        **key,
        "n_images": manifest.n_images,
        "n_blocks": n_blocks,
        "with_patches": with_patches,
        "format": file_format,
    }
    known = _read_about(out)
    if known is not None:
        differing = [name for name, value in about.items() if known.get(name) != value]
        if not differing:
            return known
        raise UserError(
            f"'{out.name}' holds features made otherwise ({', '.join(differing)} differ). Give another output folder, or delete "
            "this one."
        )
    store = FeatureStore(out / UNFINISHED)
    features = store.features(
        backbone,
        ShardReader(root),
        content_hash=manifest.content_hash,
        n_blocks=n_blocks,
        with_mean_patch=True,
        with_patches=with_patches,
        image_size_px=size_px,
        batch_size=batch_size,
        device=device,
        on_progress=on_progress,
    )
    arrays = {"cls": features.cls, "mean_patch": features.mean_patch, "patches": features.patches}
    found = {name: array for name, array in arrays.items() if array is not None}
    if file_format == "npy":
        for name, array in found.items():
            if name == PATCHES:  # may be larger than what is free: the file itself, without the store's checksums
                _take_over(store.path_of(key, PATCHES), out / f"{PATCHES}.npy")
            else:
                _write(out / f"{name}.npy", _npy(array))
    else:
        _check_space(out, sum(array.nbytes for array in found.values()))
        _write(out / TENSORS, _safetensors(found))
    _write_table(out / TABLE, manifest, found["cls"][:, -1])
    about["arrays"] = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in found.items()}
    _write(out / ABOUT, iter([json.dumps(about, indent=2).encode() + b"\n"]))
    shutil.rmtree(out / UNFINISHED)
    return about


def _check(root: Path, file_format: str) -> None:
    if file_format not in FORMATS:
        raise UserError(f"Unknown format '{file_format}'. Allowed: {', '.join(FORMATS)}.")
    if not IntakeFolder(root).manifest.is_file():
        raise UserError(
            f"'{root.name}' is no intake folder. DICOM files and data sets become one with `vetdino intake {root.name} studies`, "
            "PNG and other picture files with `--source images`; then embed that folder."
        )


def _read_about(out: Path) -> dict[str, Any] | None:
    try:
        return json.loads((out / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, parts: Iterator[bytes]) -> None:
    """Part by part into a file that gets its name when it is whole."""
    with whole_file(path) as partial, partial.open("wb") as file:
        for part in parts:
            file.write(part)


def _take_over(source: Path, target: Path) -> None:
    stored = np.load(source, mmap_mode="r")
    os.truncate(source, stored.offset + stored.nbytes)
    source.replace(target)


def _check_space(out: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if n_bytes > free:
        raise UserError(
            f"'{TENSORS}' needs {n_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free. The features are kept: make room, or "
            "choose --format npy, which needs no second copy, and give the command again."
        )


def _rows_in_parts(array: NDArray[Any]) -> Iterator[bytes]:
    """The bytes of an array that may be larger than memory."""
    n_rows = max(1, _BATCH_BYTES // max(1, array[:1].nbytes))
    return (array[start : start + n_rows].tobytes() for start in range(0, len(array), n_rows))


def _npy(array: NDArray[Any]) -> Iterator[bytes]:
    header = BytesIO()
    about = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, about)
    yield header.getvalue()
    yield from _rows_in_parts(array)


def _safetensors(arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes]:
    """Source: the format's description, huggingface/safetensors: header length, JSON header, then the tensors' bytes. The
    package itself wants all of them in memory."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        yield from _rows_in_parts(array)


def _write_table(path: Path, manifest: Manifest, cls: NDArray[np.float32]) -> None:
    table = manifest.columns(list(IDENTITY))
    values = pa.array(np.ascontiguousarray(cls).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(values, cls.shape[1])
    with whole_file(path) as partial:
        pq.write_table(table.append_column("cls", vectors), partial)
