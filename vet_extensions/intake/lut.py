"""Look-up tables of a DICOM file: modality, values of interest and palettes all have this form. `pixels` and `colour` use it."""

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset

from vet_extensions.intake.dicom import number
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import RejectionCode


def apply_lut(
    item: Dataset,
    values: np.ndarray,
    *,
    dataset: Dataset,
    is_input_signed: bool,
    descriptor: str = "LUTDescriptor",
    data: str = "LUTData",
) -> tuple[np.ndarray, int]:
    """Look `values` up in the table that two attributes of `item` hold; returns the entries as float64 and their number of bits.

    The descriptor (PS3.3 C.11.1.1, C.7.6.3.1.5) holds the number of entries (0 means 65,536), the input value of the first
    entry, and bits per entry. Inputs below the first or above the last get the first or last entry.
    dataset: the file, for its byte order. Errors: Refusal with INVALID_GREYSCALE_TRANSFORM.
    """
    parts = [number(item, descriptor, index=i) for i in range(3)]
    if any(part is None or not np.isfinite(part) for part in parts):
        raise _invalid(f"{descriptor} does not hold three numbers")
    n_entries, first, bits = (int(part) for part in parts if part is not None)
    # The VR is US or SS after the input's sign, and a file may have been written with the other one.
    n_entries = n_entries % 2**16 or 2**16
    if is_input_signed and first >= 2**15:
        first -= 2**16
    elif not is_input_signed and first < 0:
        first += 2**16
    if not 8 <= bits <= 16:
        raise _invalid(f"a look-up table with {bits} bits an entry; 8 to 16 are defined")
    entries = _entries(item.get(data), n_entries, is_little_endian=bool(dataset.original_encoding[1]))
    if entries is None:
        raise _invalid(f"{data} is shorter than the {n_entries} entries that {descriptor} states")
    positions = np.clip(np.rint(values) - first, 0, n_entries - 1).astype(np.int64)
    return entries[positions].astype(np.float64), bits


def _entries(data: object, n_entries: int, *, is_little_endian: bool) -> np.ndarray | None:
    """The data as integers: US values, or OW bytes of 16 bits each, or two 8-bit entries a word, the first of them in its
    low byte (PS3.3 C.11.1.1.1, C.7.6.3.1.6). None if there are too few."""
    if isinstance(data, bytes):
        order = "<" if is_little_endian else ">"
        if len(data) >= 2 * n_entries:
            return np.frombuffer(data, f"{order}u2", count=n_entries)
        if len(data) >= n_entries:
            words = np.frombuffer(data[: n_entries - n_entries % 2], f"{order}u2").astype("<u2")
            return np.concatenate([words.view(np.uint8), np.frombuffer(data[words.nbytes : n_entries], np.uint8)])
    elif isinstance(data, Sequence) and len(data) >= n_entries:
        return np.asarray(data[:n_entries], dtype=np.int64) & 0xFFFF
    return None


def _invalid(detail: str) -> Refusal:
    return Refusal(RejectionCode.INVALID_GREYSCALE_TRANSFORM, detail)
