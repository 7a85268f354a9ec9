"""MedMNIST v2 files of 2-D images (Yang et al., Sci Data 10:41; CC BY 4.0): one .npz, read as it is, its split as published.

No patient identifiers are published; the splits are said to be by patient where the sources allow it. The classes' names and the
numbers are those of the data sets' own index.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinov2.utils.files import file_sha256
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL, LabelledImages
from vet_extensions.evaluation.datasets.assembly import Description, Found, assemble
from vet_extensions.evaluation.datasets.options import choice
from vet_extensions.evaluation.datasets.pixels import NpzReader
from vet_extensions.evaluation.datasets.registry import DATA_SETS
from vet_extensions.evaluation.datasets.splitting import Cutting
from vet_extensions.schema import ViewFamily

SPLITS = ("train", "val", "test")
SIZES = ("28", "64", "128", "224")


@dataclass(frozen=True)
class Info:
    """classes: names of the labels, in order. images: numbers in train, val and test."""

    classes: tuple[str, ...]
    images: tuple[int, int, int]
    task: str = MULTICLASS


_ORGANS = (
    "bladder", "femur_left", "femur_right", "heart", "kidney_left", "kidney_right", "liver", "lung_left", "lung_right",
    "pancreas", "spleen",
)  # fmt: skip
_FINDINGS = (
    "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax", "consolidation",
    "edema", "emphysema", "fibrosis", "pleural", "hernia",
)  # fmt: skip
_TISSUE = (
    "adipose", "background", "debris", "lymphocytes", "mucus", "smooth_muscle", "normal_colon_mucosa", "cancer_associated_stroma",
    "colorectal_adenocarcinoma_epithelium",
)  # fmt: skip
_SKIN = (
    "actinic_keratoses_and_intraepithelial_carcinoma", "basal_cell_carcinoma", "benign_keratosis_like_lesions", "dermatofibroma",
    "melanoma", "melanocytic_nevi", "vascular_lesions",
)  # fmt: skip
_CELLS = (
    "basophil", "eosinophil", "erythroblast", "immature_granulocytes", "lymphocyte", "monocyte", "neutrophil", "platelet",
)  # fmt: skip
_KIDNEY = (
    "collecting_duct_connecting_tubule", "distal_convoluted_tubule", "glomerular_endothelial_cells",
    "interstitial_endothelial_cells", "leukocytes", "podocytes", "proximal_tubule_segments", "thick_ascending_limb",
)  # fmt: skip
INFO: Mapping[str, Info] = {
    "pathmnist": Info(_TISSUE, (89_996, 10_004, 7_180)),
    "chestmnist": Info(_FINDINGS, (78_468, 11_219, 22_433), task=MULTILABEL),
    "dermamnist": Info(_SKIN, (7_007, 1_003, 2_005)),
    "octmnist": Info(
        ("choroidal_neovascularization", "diabetic_macular_edema", "drusen", "normal"), (97_477, 10_832, 1_000)
    ),
    "pneumoniamnist": Info(("normal", "pneumonia"), (4_708, 524, 624)),
    "retinamnist": Info(("grade_0", "grade_1", "grade_2", "grade_3", "grade_4"), (1_080, 120, 400)),
    "breastmnist": Info(("malignant", "normal_or_benign"), (546, 78, 156)),
    "bloodmnist": Info(_CELLS, (11_959, 1_712, 3_421)),
    "tissuemnist": Info(_KIDNEY, (165_466, 23_640, 47_280)),
    "organamnist": Info(_ORGANS, (34_561, 6_491, 17_778)),
    "organcmnist": Info(_ORGANS, (12_975, 2_392, 8_216)),
    "organsmnist": Info(_ORGANS, (13_932, 2_452, 8_827)),
}


@DATA_SETS.register("medmnist")
def medmnist(root: Path, *, name: str, size: str = "28") -> LabelledImages:
    """One of the twelve 2-D sets. root: holds NAME.npz (28 px) or NAME_64.npz and so on. Colour becomes luminance.

    Errors: UserError for a name that is none of them (those of volumes are none of these), a missing file or array, or a label
    outside the vocabulary.
    """
    info = INFO[choice(name, INFO, key="name")]
    suffix = "" if choice(size, SIZES, key="size") == "28" else f"_{size}"
    path = root / f"{name}{suffix}.npz"
    if not path.is_file():
        raise UserError(f"MedMNIST: '{path.name}' is not in '{root}'. Download it there, or give another size.")
    labels, n_images = _read_labels(path, info)
    split = np.repeat(SPLITS, n_images)
    # The pictures of a split are numbered as they stand in its array.
    images = np.array([f"{word}/{number}" for word, n in zip(SPLITS, n_images) for number in range(n)])
    found = Found(
        path=images,
        labels=labels,
        patient=images,
        split=split,
        family=np.full(len(images), str(ViewFamily.OTHER)),
    )
    description = Description(
        name=path.stem,
        label_names=info.classes,
        task=info.task,
        policy={"labels": "as published"},
        published=dict(zip(SPLITS, info.images, strict=True)),
        has_patients=False,
    )
    arrays = tuple((f"{word}_images", n) for word, n in zip(SPLITS, n_images, strict=True))
    reader = NpzReader(path, arrays)
    return assemble(found, description, reader=reader, cutting=Cutting(), content=file_sha256(path))


def _read_labels(path: Path, info: Info) -> tuple[np.ndarray, tuple[int, ...]]:
    """Labels of all splits, [n, L] int8, and the number of images in each."""
    with np.load(path) as stored:
        needed = [f"{word}_{what}" for word in SPLITS for what in ("images", "labels")]
        if absent := [key for key in needed if key not in stored]:
            raise UserError(
                f"'{path.name}' has no array {', '.join(absent)}. Download it again from the MedMNIST release."
            )
        parts = [np.asarray(stored[f"{word}_labels"]) for word in SPLITS]
    n_classes = len(info.classes)
    width, top = (n_classes, 1) if info.task == MULTILABEL else (1, n_classes - 1)
    values = np.concatenate([part.reshape(len(part), -1) for part in parts]).astype(np.int64)
    if values.shape[1] != width or values.min() < 0 or values.max() > top:
        raise UserError(
            f"The labels of '{path.name}' must be {width} numbers an image from 0 to {top}, got {values.shape[1]} from "
            f"{values.min()} to {values.max()}. Download it again."
        )
    labels = values if info.task == MULTILABEL else np.eye(n_classes, dtype=np.int64)[values[:, 0]]
    return labels.astype(np.int8), tuple(len(part) for part in parts)
