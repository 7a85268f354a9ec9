"""What an evaluation's images share with those a model was trained on: patients, studies, images, pixels.

`find_leaks` compares two manifests by their identifiers and pixel hashes; near-duplicate pictures are found elsewhere
(`shards.fingerprints`, for this room reads no pixels) and handed in. Used by `vetdino check OUT --against OTHER`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.manifest.io import Manifest
from vet_extensions.schema import IntakeFolder

KEYS = {"patient_id": "same patient", "study_id": "same study", "image_id": "same image", "pixel_hash": "same pixels"}
NEAR = "nearly the same pixels"
N_EXAMPLES = 5
FILTER_NAME = "filter.json"
"""What `vetdino filter` writes beside the manifest of the images that it chose."""


@dataclass(frozen=True)
class Leak:
    """One kind of leak. n_images: images of the other folder concerned. examples: (image id here, image id there)."""

    kind: str
    n_images: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LeakReport:
    """What two folders share; `str(report)` is what the command line prints, image ids only.

    notes: what the comparison could not see.
    """

    n_here: int
    n_there: int
    leaks: tuple[Leak, ...]
    notes: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        return not any(leak.n_images for leak in self.leaks)

    def __str__(self) -> str:
        lines = [f"{self.n_there:,} images against {self.n_here:,}"]
        for leak in self.leaks:
            lines.append(f"  {leak.kind:<28}{leak.n_images:>12,} images")
            lines += [f"    {there} is in the other as {here}" for here, there in leak.examples]
        lines += [f"NOTE: {note}" for note in self.notes]
        return "\n".join(
            [*lines, "No leak found." if self.is_clean else "LEAK: the two share what they should not share."]
        )


def find_leaks(
    manifest: Manifest,
    other: Manifest,
    *,
    salts: tuple[str | None, str | None] = (None, None),
    near: Sequence[tuple[int, int]] | None = None,
) -> LeakReport:
    """Compare the images of `other` with those of `manifest`.

    salts: fingerprints of the salts of the two folders, None where unknown. near: pairs of an image here and one there (places
    in the two manifests) that show nearly the same picture; None where that was not looked for. Pairs whose pixels or ids are
    equal are counted as such only.
    """
    ids = [m.columns(["image_id"])["image_id"].to_numpy() for m in (manifest, other)]
    leaks, known = [], set()
    for column, kind in KEYS.items():
        places = _first_with_same(manifest, other, column)  # [n], -1 where there is none
        shared = np.flatnonzero(places >= 0)
        if column in ("image_id", "pixel_hash"):
            known.update(shared.tolist())
        examples = tuple((str(ids[0][places[j]]), str(ids[1][j])) for j in shared[:N_EXAMPLES])
        leaks.append(Leak(kind, len(shared), examples))
    if near is not None:
        new = [(i, j) for i, j in near if j not in known]
        examples = tuple((str(ids[0][i]), str(ids[1][j])) for i, j in new[:N_EXAMPLES])
        leaks.append(Leak(NEAR, len({j for _, j in new}), examples))
    return LeakReport(manifest.n_images, other.n_images, tuple(leaks), tuple(_notes(salts, near is not None)))


def salt_fingerprint(root: Path) -> str | None:
    """The fingerprint of the salt that a folder's ids were made with, None where neither intake.json nor filter.json says."""
    for path in (IntakeFolder(root).summary, root / FILTER_NAME):
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("salt_fingerprint")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, str) and found:
            return found
    return None


def _first_with_same(manifest: Manifest, other: Manifest, column: str) -> np.ndarray:
    """For each image there the first image here with its value, -1 for none; an empty value is like no other."""
    here, there = (m.columns([column])[column].cast(pa.string()).combine_chunks() for m in (manifest, other))
    encoded = pc.dictionary_encode(here)
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    values, first = np.unique(codes, return_index=True)
    first_of_code = np.full(len(encoded.dictionary), -1, dtype=np.int64)
    first_of_code[values[values >= 0]] = first[values >= 0]
    found = pc.index_in(pc.if_else(pc.equal(there, ""), None, there), value_set=encoded.dictionary, skip_nulls=True)
    found = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    return np.where(found >= 0, first_of_code[found] if len(first_of_code) else -1, -1)


def _notes(salts: tuple[str | None, str | None], has_looked: bool) -> list[str]:
    notes = []
    if None in salts:
        notes.append(
            "it is not known whether the two folders were made with the same salt. With different ones, the same patient, study "
            "and image have different ids, and only pixels can meet."
        )
    elif salts[0] != salts[1]:
        notes.append(
            "the folders were made with different salts: the same patient, study and image have different ids, so that nothing "
            "found there means nothing. Repeat one intake with the other's salt."
        )
    if not has_looked:
        notes.append("near-duplicate pictures were not looked for.")
    return notes
