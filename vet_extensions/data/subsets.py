"""Parts of an archive for runs that ask how much data is enough: a share of the patients, some images of each study.

Called by the study data set. Who is chosen follows from a hash of the identifiers alone, so that a smaller part lies inside a
larger one, whatever the order of the archive, the seed of the run or the rest of the patients.
"""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest


def checked_share(given: str | float, *, key: str) -> float:
    """A share above 0 and up to 1. Errors: UserError."""
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"{key} is '{given}'; it takes a share above 0 and up to 1, such as 0.1 for a tenth.")
    return share


def checked_count(given: str | int, *, key: str) -> int:
    """A whole number from 1 up. Errors: UserError."""
    text = str(given)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{key} is '{given}'; it takes a whole number from 1 up.")
    return int(text)


def share_of_patients(manifest: Manifest, share: float) -> Manifest:
    """All images of that share of the patients, at least of one; the same rounding for every share, so that parts are nested."""
    patient_of_image = manifest.patient_codes
    first = np.flatnonzero(np.diff(patient_of_image, prepend=-1))
    ids = manifest.columns(["patient_id"])["patient_id"].take(pa.array(first))
    n_kept = max(1, round(share * len(first)))
    is_kept = np.zeros(len(first), dtype=bool)
    is_kept[np.argsort(_hashes(ids, "patients"), kind="stable")[:n_kept]] = True
    return manifest.take(np.flatnonzero(is_kept[patient_of_image]))


def images_per_study(manifest: Manifest, n: int) -> Manifest:
    """At most n images of each study; those for n are among those for n + 1."""
    study_of_image, offsets = manifest.study_codes, manifest.study_offsets
    hashes = _hashes(manifest.columns(["image_id"])["image_id"], "views per study")
    order = np.lexsort((hashes, study_of_image))
    place = np.arange(manifest.n_images) - offsets[study_of_image]
    return manifest.take(np.sort(order[place < n]))


def _hashes(ids: pa.ChunkedArray, purpose: str) -> NDArray[np.uint64]:
    """64 bits of each identifier; another purpose gives others, so that one choice says nothing of the next."""
    person = purpose.encode()
    digests = (
        hashlib.blake2b(text.encode(), digest_size=8, person=person).digest()
        for chunk in ids.chunks
        for text in chunk.to_pylist()
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")
