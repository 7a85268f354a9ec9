"""Small public data sets whose folders and file names tell everything: tuberculosis in Montgomery County and Shenzhen, SARS-CoV-2
CT slices, and the figshare brain tumours.

None prescribes a test split but the brain tumours' five folds: the others are cut by patient, every class in proportion.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, LabelledImages
from vet_extensions.evaluation.datasets.assembly import (
    Description,
    Found,
    assemble,
    one_hot,
    present_files,
)
from vet_extensions.evaluation.datasets.options import choice, whole
from vet_extensions.evaluation.datasets.pixels import FileReader, MatReader, import_h5py
from vet_extensions.evaluation.datasets.registry import DATA_SETS
from vet_extensions.evaluation.datasets.splitting import Cutting, read_cutting
from vet_extensions.schema import Split, View, ViewFamily

N_FOLDS = 5
TUMOURS = ("meningioma", "glioma", "pituitary")
"""In the order of cjdata/label, which counts from 1."""

_TB_WORDS = ("normal", "tuberculosis")
_CT_CLASSES = ("Covid", "Healthy", "Others")
_PATIENT = re.compile(r"Patient \((\d+)\)", re.IGNORECASE)


@DATA_SETS.register("montgomery_tb")
def montgomery_tb(root: Path, *, val: str = "0.1", test: str = "0.2", seed: str = "0") -> LabelledImages:
    """Montgomery County chest radiographs (NLM): normal or tuberculosis, the last digit of the file's name."""
    return _tuberculosis(
        root, "MCUCXR", name="Montgomery TB", n_published=138, cutting=read_cutting(val, test, seed=seed)
    )


@DATA_SETS.register("shenzhen_tb")
def shenzhen_tb(root: Path, *, val: str = "0.1", test: str = "0.2", seed: str = "0") -> LabelledImages:
    """Shenzhen chest radiographs (NLM): normal or tuberculosis, the last digit of the file's name."""
    return _tuberculosis(
        root, "CHNCXR", name="Shenzhen TB", n_published=662, cutting=read_cutting(val, test, seed=seed)
    )


@DATA_SETS.register("sars_cov2_ct")
def sars_cov2_ct(
    root: Path, *, classes: str = "covid", val: str = "0.1", test: str = "0.2", seed: str = "0"
) -> LabelledImages:
    """The SARS-CoV-2 CT slices of 210 patients (Soares and Angelov): {Covid,Healthy,Others}/Patient (N)/k.png.

    classes: covid (against the others) or all three. A patient's slices are a study, so that study levels judge patients. The
    other data set of the same authors, {COVID,non-COVID}/*.png, names no patients and is refused: UserError.
    """
    is_binary = choice(classes, ("covid", "all"), key="classes") == "covid"
    top = folder_with(root, _CT_CLASSES, name="SARS-CoV-2 CT")
    paths = [path for word in _CT_CLASSES for path in _pictures(top / word)]
    # Patients are counted anew in every class.
    patients = [
        f"{path.relative_to(top).parts[0]}/{found[1]}" if (found := _PATIENT.search(path.as_posix())) else ""
        for path in paths
    ]
    if not paths or not all(patients):
        raise UserError(
            f"SARS-CoV-2 CT: {sum(not p for p in patients)} of {len(paths)} slices lie in no folder such as 'Covid/Patient (1)'. "
            "Use the release with 210 patients as it was downloaded."
        )
    words = np.array([path.relative_to(top).parts[0].lower() for path in paths])
    words = np.where(words == "covid", words, "other") if is_binary else words
    names = ("other", "covid") if is_binary else tuple(word.lower() for word in _CT_CLASSES)
    return _assembled(
        root,
        paths,
        words,
        patients,
        description=Description(
            name="SARS-CoV-2 CT",
            label_names=names,
            task=MULTICLASS,
            policy={"classes": classes, "study": "all slices of a patient"},
            published={"all": 4_173},
        ),
        cutting=read_cutting(val, test, seed=seed),
    )


@DATA_SETS.register("brain_tumour")
def brain_tumour(root: Path, *, fold: str = "5", val: str = "0.1", seed: str = "0") -> LabelledImages:
    """The figshare brain tumours (1512427): slices of T1 with contrast, meningioma, glioma or pituitary tumour.

    fold: which of the five of cvind.mat, cut by patient, is the test split; the one before it is val, the others train. Without
    that file the split is cut here, val being the share of val. Needs h5py.
    """
    number, mats = whole(fold, key="fold", least=1, most=N_FOLDS), numbered_mats(root)
    h5py = import_h5py()
    labels, patients = [], []
    for path in mats.values():
        try:
            with h5py.File(path, "r") as file:
                labels.append(int(np.asarray(file["cjdata/label"]).ravel()[0]))
                patients.append("".join(map(chr, np.asarray(file["cjdata/PID"]).ravel().tolist())))
        except (OSError, KeyError) as error:
            raise UserError(
                f"{path.name} is no file of the figshare brain tumours ({type(error).__name__}). Download it again."
            ) from None
    if not set(labels) <= set(range(1, len(TUMOURS) + 1)):
        raise UserError(f"cjdata/label must be 1, 2 or 3; found {sorted(set(labels) - {1, 2, 3})}.")
    split = _fold_split(root, list(mats), fold=number)
    return _assembled(
        root,
        list(mats.values()),
        np.array(TUMOURS)[np.array(labels) - 1],
        patients,
        split=split,
        reader=MatReader(list(mats.values())),
        description=Description(
            name="figshare brain tumour",
            label_names=TUMOURS,
            task=MULTICLASS,
            policy={"study": "all slices of a patient"} | ({} if split is None else {"fold": f"{number} of cvind.mat"}),
            published={"all": 3_064},
        ),
        cutting=read_cutting(val, "0.2", seed=seed),
    )


def _tuberculosis(root: Path, prefix: str, *, name: str, n_published: int, cutting: Cutting) -> LabelledImages:
    """One radiograph a patient: PREFIX_0001_0.png in CXR_png."""
    pattern = re.compile(rf"({prefix}_\d{{4}})_([01])\.png")
    folder = folder_with(root, ("CXR_png",), name=name) / "CXR_png"
    paths = [path for path in _pictures(folder) if pattern.fullmatch(path.name)]
    if not paths:
        raise UserError(f"{name}: no file such as {prefix}_0001_0.png in CXR_png. Give the folder that holds CXR_png.")
    parts = [match for path in paths if (match := pattern.fullmatch(path.name))]
    return _assembled(
        root,
        paths,
        np.array([_TB_WORDS[int(part[2])] for part in parts]),
        [part[1] for part in parts],
        description=Description(name, _TB_WORDS, task=MULTICLASS, published={"all": n_published}),
        cutting=cutting,
        view=View.PA,
    )


def _assembled(
    root: Path,
    paths: Sequence[Path],
    words: np.ndarray,
    patients: Sequence[str],
    *,
    description: Description,
    cutting: Cutting,
    split: np.ndarray | None = None,
    reader: FileReader | MatReader | None = None,
    view: View = View.UNKNOWN,
) -> LabelledImages:
    """Images of one class each, whose patients are their studies. words: [n], the class of each."""
    _, sizes = present_files(paths, missing="refuse", name=description.name)
    found = Found(
        path=np.array([path.relative_to(root).as_posix() for path in paths]),
        labels=one_hot(words, description.label_names),
        patient=np.array(patients, dtype=str),
        split=split,
        view=np.full(len(paths), str(view)),
        family=None if view is not View.UNKNOWN else np.full(len(paths), str(ViewFamily.OTHER)),
    )
    reader = FileReader(paths) if reader is None else reader
    return assemble(found, description, reader=reader, cutting=cutting, content=sizes.tolist())


def folder_with(root: Path, names: Sequence[str], *, name: str) -> Path:
    """The folder at or at most two levels below `root` that has all of these. Errors: UserError."""
    folders = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
    found = next((folder for folder in folders if all((folder / part).is_dir() for part in names)), None)
    if found is None:
        raise UserError(
            f"{name}: no folder with {', '.join(names)} in '{root}'. Give the folder of the release as it was downloaded. (Its "
            "namesakes without patients cannot be split safely; use class_folder for them.)"
        )
    return found


def _pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, slices in the order of their numbers; nothing that macOS or Windows left there."""
    suffixes = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
    found = [p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("._")]
    return sorted(found, key=lambda path: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", path.as_posix())])


def numbered_mats(root: Path) -> dict[int, Path]:
    """Number -> file, in order; the release has them in four folders, copies in one. Errors: UserError where there are none."""
    found = {int(path.stem): path for path in root.rglob("*.mat") if path.stem.isdigit()}
    if not found:
        raise UserError(f"figshare brain tumour: no file such as 1.mat below '{root}'. Unpack the release there.")
    return dict(sorted(found.items()))


def _fold_split(root: Path, numbers: Sequence[int], *, fold: int) -> np.ndarray | None:
    """The split of each file by cvind.mat, [n]; None where that file is not there."""
    path = next(iter(sorted(root.rglob("cvind.mat"))), None)
    if path is None:
        return None
    h5py = import_h5py()
    if not h5py.is_hdf5(path):
        raise UserError("cvind.mat is no MATLAB v7.3 file. Download it again.")
    with h5py.File(path, "r") as file:
        folds = np.asarray(file["cvind"]).ravel().astype(int)
    if max(numbers) > len(folds):
        raise UserError(
            f"cvind.mat speaks of {len(folds)} files, but there is a {max(numbers)}.mat. Download it again."
        )
    of_file = folds[np.array(numbers) - 1]
    val = (fold - 2) % N_FOLDS + 1
    return np.select([of_file == fold, of_file == val], [str(Split.TEST), str(Split.VAL)], default=str(Split.TRAIN))
