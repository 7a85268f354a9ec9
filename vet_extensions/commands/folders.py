"""What can be done with a finished intake folder: comparing, choosing, splitting it anew. Used by the CLI."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vet_extensions.errors import UserError
from vet_extensions.schema import IntakeFolder

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
    from vet_extensions.manifest.leaks import find_leaks
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
    return find_leaks(here, there, salts=(_salt_of(root), _salt_of(other)), near=near)


def _of_split(manifest: "Manifest", split: str) -> "Manifest":
    return manifest if split == ALL else manifest.select(split=split)


def _salt_of(root: Path) -> str | None:
    """The fingerprint of the salt that a folder's ids were made with, None where intake.json does not say."""
    try:
        summary = json.loads(IntakeFolder(root).summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = summary.get("salt_fingerprint") if isinstance(summary, dict) else None
    return found if isinstance(found, str) else None
