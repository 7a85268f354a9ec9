"""Public images with label maps: lungs in Montgomery County and Shenzhen radiographs, and the figshare brain tumours.

Label maps are read at the images' own size. None but the brain tumours prescribes a split; it is cut by patient, both classes in
proportion.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.datasets.assembly import compare_counts, present_files
from vet_extensions.evaluation.datasets.cases import brain_tumour, folder_with, numbered_mats
from vet_extensions.evaluation.datasets.pixels import FileReader, import_h5py
from vet_extensions.evaluation.datasets.registry import MASK_SETS
from vet_extensions.evaluation.datasets.splitting import Cutting, complete_split, read_cutting
from vet_extensions.evaluation.features import short_hash
from vet_extensions.evaluation.segmentation.sets import SegmentationSet

_NAME = re.compile(r"((?:MCUCXR|CHNCXR)_\d{4})_([01])(?:_mask)?\.png")


@MASK_SETS.register("montgomery_lungs")
def montgomery_lungs(root: Path, *, val: str = "0.1", test: str = "0.2", seed: str = "0") -> SegmentationSet:
    """Montgomery County (NLM): CXR_png and ManualMask/{leftMask,rightMask}. Left and right are the patient's."""
    name = "Montgomery lungs"
    top = folder_with(root, ("CXR_png", "ManualMask"), name=name)
    images = _named(top / "CXR_png", "MCUCXR")
    masks = [tuple(top / "ManualMask" / side / path.name for side in ("leftMask", "rightMask")) for path in images]
    return _lungs(
        root,
        images,
        masks,
        name=name,
        class_names=("background", "left_lung", "right_lung"),
        n_published=138,
        cutting=read_cutting(val, test, seed=seed),
    )


@MASK_SETS.register("shenzhen_lungs")
def shenzhen_lungs(root: Path, *, val: str = "0.1", test: str = "0.2", seed: str = "0") -> SegmentationSet:
    """Shenzhen (NLM) with the 566 published lung masks (Stirenko et al. 2018): CXR_png and mask/<name>_mask.png, or masks/.

    Images without a mask are left out.
    """
    name = "Shenzhen lungs"
    masks = {
        path.name: path for folder in ("mask", "masks") for path in sorted(root.glob(f"**/{folder}/CHNCXR_*_mask.png"))
    }
    images = _named(folder_with(root, ("CXR_png",), name=name) / "CXR_png", "CHNCXR")
    pairs = [(path, masks[mask]) for path in images if (mask := f"{path.stem}_mask.png") in masks]
    if not pairs:
        raise UserError(
            f"{name}: no mask such as mask/CHNCXR_0001_0_mask.png below '{root}'. They are a release of their own."
        )
    return _lungs(
        root,
        [image for image, _ in pairs],
        [(mask,) for _, mask in pairs],
        name=name,
        class_names=("background", "lung"),
        n_published=566,
        cutting=read_cutting(val, test, seed=seed),
    )


@MASK_SETS.register("brain_tumour_masks")
def brain_tumour_masks(root: Path, *, fold: str = "5", val: str = "0.1", seed: str = "0") -> SegmentationSet:
    """The figshare brain tumours: background and tumour, with the folds of `cases.brain_tumour`."""
    found: LabelledImages = brain_tumour(root, fold=fold, val=val, seed=seed)
    paths = list(numbered_mats(root).values())
    return SegmentationSet(
        name=f"{found.name} masks",
        class_names=("background", "tumour"),
        split=found.cohort.split,
        patient_codes=found.cohort.patient_codes,
        read=found.reader.read,
        mask=partial(_tumour_mask, paths),
        spacing_mm=np.full((len(paths), 2), np.nan),
        content_hash=short_hash(["masks", found.content_hash]),
        policy=found.policy,
    )


def _lungs(
    root: Path,
    images: Sequence[Path],
    masks: Sequence[tuple[Path, ...]],
    *,
    name: str,
    class_names: tuple[str, ...],
    n_published: int,
    cutting: Cutting,
) -> SegmentationSet:
    """masks: for each image a file for each class but the background, white where it is."""
    if not images:
        raise UserError(f"{name}: no radiograph in CXR_png. Give the folder as it was downloaded.")
    _, sizes = present_files(images, missing="refuse", name=name)
    _, mask_sizes = present_files([path for paths in masks for path in paths], missing="refuse", name=name)
    parts = [match for path in images if (match := _NAME.fullmatch(path.name))]
    patients, strata = (np.array([part[group] for part in parts]) for group in (1, 2))
    counted = compare_counts({"all": len(images)}, {"all": n_published}, name=name)
    none = np.full(len(images), "", dtype="<U5")
    split, how = complete_split(none, patients=patients, strata=strata, cutting=cutting)
    policy = {"split": how, "counts": counted}
    paths = [path.relative_to(root).as_posix() for path in images]
    read: Callable[[int], np.ndarray] = FileReader(images).read
    return SegmentationSet(
        name=name,
        class_names=class_names,
        split=split,
        patient_codes=np.unique(patients, return_inverse=True)[1],
        read=read,
        mask=partial(_white, masks),
        spacing_mm=np.full((len(images), 2), np.nan),
        content_hash=short_hash([name, paths, sizes.tolist(), mask_sizes.tolist(), split.tolist(), policy]),
        policy=policy,
    )


def _white(masks: Sequence[tuple[Path, ...]], row: int) -> NDArray[np.int64]:
    """The number of the last class whose mask is white, [H, W]; 0 where none is. Some masks are colour PNGs of one grey."""
    found: NDArray[np.int64] | None = None
    for number, path in enumerate(masks[row], start=1):
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            raise UserError(f"The mask of case {row} is no readable PNG. Download it again.")
        found = np.zeros(pixels.shape, dtype=np.int64) if found is None else found
        found[pixels > 127] = number
    assert found is not None, "every image has a mask"
    return found


def _tumour_mask(paths: Sequence[Path], row: int) -> NDArray[np.int64]:
    with import_h5py().File(paths[row], "r") as file:
        return (np.asarray(file["cjdata/tumorMask"]).T > 0).astype(np.int64)


def _named(folder: Path, prefix: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"{prefix}_*.png") if _NAME.fullmatch(path.name))
