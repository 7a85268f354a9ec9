"""What can be done with a finished intake folder: comparing, choosing, splitting it anew. Used by the CLI."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vet_extensions.errors import UserError
from vet_extensions.schema import IntakeFolder, Split

if TYPE_CHECKING:
    from vet_extensions.manifest.io import Manifest
    from vet_extensions.manifest.leaks import LeakReport

ALL = "all"


def compare_folders(
    root: Path,
    other: Path,
    *,
    split: str = ALL,
    other_split: str = ALL,
    look_at_pixels: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> "LeakReport":
    """What the images of `other` share with those of `root`: identifiers, pixels, and nearly equal pictures where asked for.

    split, other_split: train, val, test or all. on_progress: called with (images looked at, images) of one folder after the
    other. Errors: UserError for folders that cannot be read, or that are one and the same with overlapping splits.
    """
    from vet_extensions.manifest.io import Manifest
    from vet_extensions.manifest.leaks import find_leaks, salt_fingerprint
    from vet_extensions.shards.fingerprints import near_duplicates
    from vet_extensions.shards.reader import ShardReader

    manifest, against = (Manifest.open(folder) for folder in (root, other))
    if manifest.content_hash == against.content_hash and (split == other_split or ALL in (split, other_split)):
        raise UserError(
            f"'{root}' and '{other}' hold the same images. To compare the splits of one folder give both: "
            "--split train --against-split test"
        )
    here, there = _of_split(manifest, split), _of_split(against, other_split)
    near = None
    if look_at_pixels:
        near = near_duplicates(
            ShardReader(root),
            ShardReader(other),
            rows_here=here.row_index,
            rows_there=there.row_index,
            on_progress=on_progress,
        )
    return find_leaks(here, there, salts=(salt_fingerprint(root), salt_fingerprint(other)), near=near)


def _of_split(manifest: "Manifest", split: str) -> "Manifest":
    return manifest if split == ALL else manifest.select(split=split)


def choose_into(
    root: Path, into: Path, *, where: str, on_progress: Callable[[int, int], None] | None = None
) -> "Manifest":
    """Write the images for which an expression holds, pixels and all, into a new folder, whole or not at all.

    The split of each patient stays. `filter.json` says where they came from. Errors: UserError for an expression that cannot be
    read or chooses nothing, and where `into` holds something.
    """
    from vet_extensions.manifest.filter import where_true
    from vet_extensions.manifest.io import Manifest, write_manifest
    from vet_extensions.manifest.leaks import FILTER_NAME, salt_fingerprint
    from vet_extensions.shards.reader import ShardReader
    from vet_extensions.shards.writer import ShardWriter

    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UserError(f"'{into}' is there already and is not empty. Give a new folder.")
    manifest = Manifest.open(root)
    chosen = where_true(manifest, where)
    if chosen.n_images == 0:
        raise UserError(f"No image of '{root}' fits: {where}. See what there is with: vetdino check {root}")
    reader, ids = ShardReader(root), chosen.columns(["image_id"])["image_id"].to_pylist()
    folder = IntakeFolder(into)
    with ShardWriter(folder.shards) as writer:
        for done, (image_id, row) in enumerate(zip(ids, chosen.row_index.tolist(), strict=True), start=1):
            writer.add(image_id, reader.read(row))
            if on_progress is not None:
                on_progress(done, len(ids))
    about = {
        "where": where,
        "of": manifest.content_hash,
        "n_images": len(ids),
        "salt_fingerprint": salt_fingerprint(root),
    }
    (into / FILTER_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    write_manifest(chosen.table.unify_dictionaries(), folder.manifest)
    return Manifest.open(into)


def split_folder(
    root: Path, *, fractions: Mapping[Split, float], seed: int, by: Sequence[str], replace: bool
) -> tuple[dict[str, dict[str, int]], bool]:
    """Split the patients of a folder anew. Returns trait -> split -> patients, and whether the manifest was written.

    Without `replace` nothing is written. The manifest gets a new content hash, so that nothing computed for the old split is
    taken for the new one; intake.json gets the new counts. Errors: UserError for unknown columns.
    """
    from vet_extensions.manifest.io import Manifest, write_manifest
    from vet_extensions.manifest.split import count_traits, split_again

    manifest = Manifest.open(root)
    table = split_again(manifest, fractions=fractions, seed=seed, by=by)
    patients, splits = table["patient_id"].to_pylist(), table["split"].to_pylist()
    of_patient = dict(zip(patients, splits, strict=True))
    counts = {"patients": {str(split): list(of_patient.values()).count(str(split)) for split in Split}}
    counts |= count_traits(manifest, of_patient, by)
    is_new = not table["split"].equals(manifest.columns(["split"])["split"].cast("string"))
    if not (replace and is_new):
        return counts, False
    write_manifest(table, IntakeFolder(root).manifest)
    _tell_summary(root, Manifest.open(root))
    return counts, True


def _tell_summary(root: Path, manifest: "Manifest") -> None:
    """Write the new counts a split into intake.json, where there is one."""
    path = IntakeFolder(root).summary
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for split in Split:
        part = manifest.select(split=split)
        n_patients = int(part.patient_codes[-1]) + 1 if part.n_images else 0
        counts = {"patients": n_patients, "studies": part.n_studies, "images": part.n_images}
        summary.setdefault("splits", {})[str(split)] = counts
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
