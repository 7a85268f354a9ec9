"""Label maps of the phantom's organs, and a folder of images with their label maps: truth for segmentation.

`vetdino organs` calls `write_organ_folder`. The maps come from the camera and the scene that make the image, so that both
agree to the pixel; what the collimator covers is background, since nobody could see it.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.phantom.exposure import Exposure
from vet_extensions.phantom.formation import collimated_field
from vet_extensions.phantom.headers import ImageKey
from vet_extensions.phantom.render import organ_masks, render_view
from vet_extensions.phantom.studies import PhantomStudy, sample_study
from vet_extensions.schema import Split

ORGANS = ("lung", "liver", "stomach", "heart", "spine")
"""Classes 1 to 5 of a label map. Where organs lie behind each other, the later of these has the pixel."""

CLASSES = ("background", *ORGANS)
_SPLITS = (Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VAL, Split.TEST)
"""By turns over the patients, who are drawn independently: 60, 20 and 20 %."""
_POLICY = {
    "overlap": "where organs project onto each other, a pixel belongs to the last of: " + ", ".join(ORGANS),
    "collimation": "what the collimator covers is background",
}


def organ_map(study: PhantomStudy, exposure: Exposure, size_px: int) -> NDArray[np.uint8]:
    """Class of each pixel of `render_view`'s image, [size_px, size_px]; see `CLASSES`."""
    masks = organ_masks(study, exposure, size_px)
    field = collimated_field(exposure, size_px)
    labels = np.zeros((size_px, size_px), np.uint8)
    for number, organ in enumerate(ORGANS, start=1):
        labels[field][masks[organ][field]] = number
    return labels


def write_organ_folder(
    out: Path,
    *,
    n_studies: int,
    seed: int = 0,
    size_px: int = 128,
    on_progress: Callable[[int], object] | None = None,
) -> int:
    """Write the images of studies 0 .. n_studies - 1 with their label maps; returns the number of images.

    out: a new or empty folder, or one that an interrupted call with the same values left. It gets
    images/<case>.png (8 bit), masks/<case>.png, classes.json and, last, cases.csv with patients, splits and pixel spacing.
    Raises UserError for a folder that holds something else, and for too few studies to fill three splits.
    """
    if n_studies < len(_SPLITS):
        raise UserError(f"{n_studies} studies were asked for; three splits by patient need at least {len(_SPLITS)}.")
    _claim(out, {"seed": seed, "n_studies": n_studies, "size_px": size_px})
    rows = []
    for number in range(n_studies):
        study = sample_study(seed, number)
        for index, exposure in enumerate(study.exposures):
            key = ImageKey(seed, number, index, exposure.view)
            case = f"{number:06d}_{index}"
            spacing = _write_case(out, case, study, exposure, size_px)
            split = _SPLITS[key.patient_number % len(_SPLITS)]
            rows.append((case, key.patient_id, str(split), f"{spacing:.6f}", f"{spacing:.6f}"))
        if on_progress is not None:
            on_progress(number + 1)
    partial = out / "cases.partial"
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("case", "patient", "split", "row_spacing_mm", "column_spacing_mm"))
        writer.writerows(rows)
    partial.replace(out / "cases.csv")
    return len(rows)


def _claim(out: Path, request: dict[str, int]) -> None:
    described = {"name": "phantom organs", "classes": list(CLASSES), "policy": _POLICY, "request": request}
    file = out / "classes.json"
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")) != described:
            raise UserError(
                f"'{out.name}' holds other organs than were asked for. Give the same values to finish them, or another folder."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out.name}' is not empty and holds no organ folder. Give a new or empty folder.")
    for kind in ("images", "masks"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _write_case(out: Path, case: str, study: PhantomStudy, exposure: Exposure, size_px: int) -> float:
    """Write image and label map; returns the pixel spacing in mm."""
    rendered = render_view(study, exposure, size_px)
    image = np.rint(rendered.image * 255).astype(np.uint8)
    for kind, pixels in (("images", image), ("masks", organ_map(study, exposure, size_px))):
        is_encoded, content = cv2.imencode(".png", pixels)
        assert is_encoded, "a grey array of 8 bit is always a PNG"
        partial = out / kind / f"{case}.partial"
        partial.write_bytes(content.tobytes())
        partial.replace(out / kind / f"{case}.png")
    return rendered.pixel_spacing_mm
