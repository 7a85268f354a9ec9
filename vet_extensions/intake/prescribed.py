"""Splits that a data set prescribes, by patient. `run` and `parts` ask for the split of all patients here."""

from typing import Any

import numpy as np
import pyarrow as pa

from vet_extensions.manifest.split import split_patients
from vet_extensions.schema import Split


def split_all(
    patients: pa.ChunkedArray | pa.Array, codes: np.ndarray, *, options: dict[str, Any]
) -> tuple[dict[str, Split], dict[str, int]]:
    """patient id -> split, and how many patients were prescribed one.

    patients: of each image. codes: int8 [images], the number of the split that the source prescribes, -1 for none; all are -1
    where the user wants none of it. options: `IntakeOptions.as_json`, for the shares and the seed.
    A patient with two prescribed splits has the later of train, val, test, so that no prescribed test image is trained on. The
    patients without one are split among themselves at the usual shares. Counts: {} where nothing is prescribed.
    """
    encoded = (patients.combine_chunks() if isinstance(patients, pa.ChunkedArray) else patients).dictionary_encode()
    names, of_image = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    first, last = np.full(len(names), len(Split)), np.full(len(names), -1)
    is_stated = codes >= 0
    np.maximum.at(last, of_image, codes)
    np.minimum.at(first, of_image[is_stated], codes[is_stated])
    free = [name for name, code in zip(names, last.tolist(), strict=True) if code < 0]
    fractions = dict(zip(Split, options["split_fractions"], strict=True))
    splits = split_patients(free, fractions=fractions, seed=options["split_seed"])
    by_number = tuple(Split)
    splits |= {name: by_number[code] for name, code in zip(names, last.tolist(), strict=True) if code >= 0}
    counts = {
        "patients": len(names) - len(free),
        "patients_with_several": int((first < last).sum()),
        "patients_without": len(free),
    }
    return splits, counts if len(free) < len(names) else {}
