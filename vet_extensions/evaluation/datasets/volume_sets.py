"""Public volumes with label maps: the ten tasks of the Medical Segmentation Decathlon, AMOS22, BTCV, and nnU-Net folders.

Each adapter lists files and prescribed splits; `collect` looks the files up, completes the split by patient and compares the
numbers of labelled volumes with the published ones. Volumes without labels are not listed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vet_extensions.errors import UserError
from vet_extensions.evaluation.datasets.assembly import compare_counts, present_files
from vet_extensions.evaluation.datasets.options import choice, whole
from vet_extensions.evaluation.datasets.registry import VOLUME_SETS
from vet_extensions.evaluation.datasets.splitting import Cutting, complete_split, read_cutting
from vet_extensions.evaluation.datasets.volume_files import describe_window, parse_window, volume_content
from vet_extensions.evaluation.datasets.volumes import Volumes
from vet_extensions.evaluation.features import short_hash
from vet_extensions.schema import Split

SOFT_TISSUE, LUNG = (-160.0, 240.0), (-1350.0, 150.0)
"""Windows of CT in Hounsfield units: level 40, width 400; level -600, width 1500."""

MSD_TRAINING = {1: 484, 2: 20, 3: 131, 4: 260, 5: 32, 6: 63, 7: 281, 8: 303, 9: 41, 10: 126}
"""Task -> labelled volumes (Antonelli et al., Nat Commun 13:4128)."""

MSD_LUNG = 6
AMOS_CLASSES = (
    "background", "spleen", "right_kidney", "left_kidney", "gall_bladder", "oesophagus", "liver", "stomach", "aorta", "postcava",
    "pancreas", "right_adrenal_gland", "left_adrenal_gland", "duodenum", "bladder", "prostate_or_uterus",
)  # fmt: skip
BTCV_CLASSES = (
    "background", "spleen", "right_kidney", "left_kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland",
)  # fmt: skip
BTCV_TRANSUNET_TEST = ("0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035", "0036", "0038")
"""The 12 of 30 that TransUNet (arXiv 2102.04306) and its followers test on."""

_FIRST_MRI = 500
_AMOS_VOLUMES = {
    "ct": {"train": 200, "test": 100},
    "mri": {"train": 40, "test": 20},
    "both": {"train": 240, "test": 120},
}


@dataclass(frozen=True)
class Case:
    """A volume with its label map. name: what it is called. split: where one is prescribed. patient: where it is not the name."""

    name: str
    image: Path
    label: Path
    split: str = ""
    patient: str = ""


@VOLUME_SETS.register("msd")
def msd(
    root: Path,
    *,
    channel: str = "0",
    window: str = "",
    every: str = "1",
    val: str = "0.1",
    test: str = "0.2",
    seed: str = "0",
) -> Volumes:
    """One task of the Medical Segmentation Decathlon, through its dataset.json. root: such as Task09_Spleen.

    The test set has no labels: test and val are cut from the labelled volumes. channel: number or name of a modality, for
    tasks with several. window: `volume_files.parse_window`; CT has that for soft tissue (lung: Task06), MRI percentiles.
    """
    described = _read_json(root / "dataset.json")
    modalities = {int(number): str(word) for number, word in _section(described, "modality").items()}
    names = {int(number): str(word) for number, word in _section(described, "labels").items()}
    number = _channel(channel, modalities)
    task = int(found[1]) if (found := re.match(r"Task(\d\d)", root.resolve().name)) else 0
    cases = [
        Case(_stem(pair["image"]), root / pair["image"], root / pair["label"])
        for pair in described.get("training", [])
        if not Path(pair["image"]).name.startswith("._")
    ]
    ct = LUNG if task == MSD_LUNG else SOFT_TISSUE
    return collect(
        f"MSD Task{task:02d}" if task else f"MSD {described.get('name', '')}".strip(),
        cases,
        _in_order(names),
        window=parse_window(window, default=ct if modalities[number].upper() == "CT" else None),
        channel=number,
        policy={"channel": modalities[number]} if len(modalities) > 1 else {},
        published={"all": MSD_TRAINING.get(task, int(described.get("numTraining", len(cases))))},
        cutting=read_cutting(val, test, seed=seed),
        every=every,
    )


@VOLUME_SETS.register("amos22")
def amos22(
    root: Path, *, modality: str = "ct", window: str = "", every: str = "1", val: str = "0.1", seed: str = "0"
) -> Volumes:
    """AMOS22 (arXiv 2206.08023). modality: ct (numbers below 500), mri or both.

    Labels of the test set are not in the release: the published validation set is the test split here, as in papers, and val
    is cut from training. Where a folder labelsTs is there, both published sets have their own names.
    """
    choice(modality, tuple(_AMOS_VOLUMES), key="modality")
    has_test = any((root / "labelsTs").glob("amos_*.nii.gz"))
    parts = {"Tr": Split.TRAIN, "Va": Split.VAL if has_test else Split.TEST, "Ts": Split.TEST}
    cases = [
        Case(_stem(label), root / f"images{part}" / label.name, label, str(split))
        for part, split in parts.items()
        for label in sorted((root / f"labels{part}").glob("amos_*.nii.gz"))
    ]
    is_mri = {case.name: int(case.name.removeprefix("amos_")) >= _FIRST_MRI for case in cases}
    if modality != "both":
        cases = [case for case in cases if is_mri[case.name] == (modality == "mri")]
    return collect(
        "AMOS22",
        cases,
        AMOS_CLASSES,
        window=parse_window(window, default=SOFT_TISSUE if modality == "ct" else None),
        policy={"modality": modality} | ({} if has_test else {"test": "the published validation set"}),
        published={} if has_test else _AMOS_VOLUMES[modality],
        cutting=read_cutting(val, "0.2", seed=seed),
        every=every,
    )


@VOLUME_SETS.register("btcv")
def btcv(
    root: Path,
    *,
    split: str = "",
    window: str = "",
    every: str = "1",
    val: str = "0.1",
    test: str = "0.2",
    seed: str = "0",
) -> Volumes:
    """BTCV abdomen (Synapse syn3193805): RawData/Training/{img,label}, or imagesTr and labelsTr with dataset_0.json.

    split: listed (the 24 and 6 of dataset_0.json, the 6 being test), transunet (18 and 12) or cut; without it, listed where there
    is such a list, else cut. All 13 organs are scored under each. The 20 volumes of the test set have no labels.
    """
    choice(split, ("", "listed", "transunet", "cut"), key="split")
    folders = [root / "RawData" / "Training", root / "Training", root]
    pairs = [(folder / "img", folder / "label") for folder in folders[:2]] + [(root / "imagesTr", root / "labelsTr")]
    images, labels = next((pair for pair in pairs if pair[1].is_dir()), pairs[-1])
    files = [path for path in sorted(labels.glob("label*.nii*")) if not path.name.startswith("._")]
    listed = (root / "dataset_0.json").is_file()
    of_case: Mapping[str, str] = {}
    if split == "listed" or (not split and listed):
        described = _read_json(root / "dataset_0.json")
        of_case = {
            _number(pair["image"]): str(word)
            for part, word in (("training", Split.TRAIN), ("validation", Split.TEST))
            for pair in described.get(part, [])
        }
        files = [path for path in files if _number(path.name) in of_case]
    elif split == "transunet":
        numbers = [_number(path.name) for path in files]
        of_case = {n: str(Split.TEST if n in BTCV_TRANSUNET_TEST else Split.TRAIN) for n in numbers}
    cases = [
        Case(_number(path.name), images / path.name.replace("label", "img"), path, of_case.get(_number(path.name), ""))
        for path in files
    ]
    used = split or ("listed" if listed else "cut")
    return collect(
        "BTCV",
        cases,
        BTCV_CLASSES,
        window=parse_window(window, default=SOFT_TISSUE),
        policy={"list": used},
        published={"transunet": {"train": 18, "test": 12}, "listed": {"train": 24, "test": 6}}.get(used, {"all": 30}),
        cutting=read_cutting(val, test, seed=seed),
        every=every,
    )


@VOLUME_SETS.register("nnunet")
def nnunet(
    root: Path,
    *,
    channel: str = "0",
    window: str = "",
    every: str = "1",
    val: str = "0.1",
    test: str = "0.2",
    seed: str = "0",
) -> Volumes:
    """A raw data set of nnU-Net: imagesTr/<case>_0000.nii.gz, labelsTr/<case>.nii.gz, dataset.json of version 1 or 2.

    With labelsTs, imagesTs is the test split. A case is a patient. channel and window as for `msd`.
    Errors: UserError for files that are no NIfTI, and labels that are regions of several.
    """
    described = _read_json(root / "dataset.json")
    ending = str(described.get("file_ending", ".nii.gz"))
    if ending not in (".nii.gz", ".nii"):
        raise UserError(f"nnU-Net folder: files end with '{ending}'; only .nii.gz and .nii are read.")
    section = "channel_names" if "channel_names" in described else "modality"
    channels = {int(number): str(word) for number, word in _section(described, section).items()}
    number = _channel(channel, channels)
    cases = [
        Case(name, root / f"images{part}" / f"{name}_{number:04d}{ending}", label, str(split))
        for part, split in (("Tr", Split.TRAIN), ("Ts", Split.TEST))
        for label in sorted((root / f"labels{part}").glob(f"*{ending}"))
        if not label.name.startswith("._") and (name := label.name.removesuffix(ending))
    ]
    if not any(case.split == Split.TEST for case in cases):
        cases = [Case(case.name, case.image, case.label) for case in cases]
    counts = {"all": int(described["numTraining"])} if "numTraining" in described else {}
    return collect(
        root.resolve().name,
        cases,
        _in_order(_nnunet_labels(_section(described, "labels"))),
        window=parse_window(window, default=SOFT_TISSUE if channels[number].upper() == "CT" else None),
        policy={"channel": channels[number]},
        published=counts if all(case.split == "" for case in cases) else {},
        cutting=read_cutting(val, test, seed=seed),
        every=every,
    )


def collect(
    name: str,
    cases: Sequence[Case],
    class_names: tuple[str, ...],
    *,
    window: tuple[float, float] | None,
    policy: Mapping[str, str],
    published: Mapping[str, int],
    cutting: Cutting,
    every: str,
    channel: int = 0,
) -> Volumes:
    """The volumes of `cases`, the split completed by patient. published: part -> number of volumes of the complete data set.

    Errors: UserError where there is none, or a file is missing.
    """
    if not cases:
        raise UserError(f"{name}: no labelled volume in 'root'. Give the folder as it was downloaded and unpacked.")
    for paths in ([case.image for case in cases], [case.label for case in cases]):
        present_files(paths, missing="refuse", name=name)
    patients = np.array([case.patient or case.name for case in cases])
    split = np.array([case.split for case in cases], dtype="<U5")
    counts = {str(word): int((split == word).sum()) for word in Split} | {"all": len(cases)}
    counted = compare_counts(counts, published, name=name)
    split, how = complete_split(split, patients=patients, strata=np.full(len(cases), name), cutting=cutting)
    policy = {**policy, "window": describe_window(window), "split": how, "counts": counted}
    content = [
        patients.tolist(),
        split.tolist(),
        [volume_content(case.image) for case in cases],
        [volume_content(case.label) for case in cases],
        class_names,
        policy,
        every,
    ]
    return Volumes(
        name=name,
        class_names=class_names,
        images=tuple(case.image for case in cases),
        labels=tuple(case.label for case in cases),
        split=split,
        patients=patients,
        window=window,
        channel=channel,
        every=whole(every, key="every", least=1),
        content_hash=short_hash([name, *content]),
        policy=policy,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"'{path.name}' is not in the folder '{path.parent}'. Give the folder as it was downloaded.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path.name}' is no JSON ({error}). Download it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"'{path.name}' must hold a table of keys. Download it again.")
    return content


def _section(described: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = described.get(key)
    if not isinstance(section, dict) or not section:
        raise UserError(f"dataset.json has no table '{key}'. Download it again.")
    return section


def _channel(text: str, names: Mapping[int, str]) -> int:
    """The number of a channel that is given by number or by name, in any case. Errors: UserError."""
    by_name = {name.lower(): number for number, name in names.items()}
    if text.lower() in by_name:
        return by_name[text.lower()]
    if text.isdigit() and int(text) in names:
        return int(text)
    known = ", ".join(f"{number} ({name})" for number, name in sorted(names.items()))
    raise UserError(f"channel={text} is not known. The data set has {known}.")


def _in_order(names: Mapping[int, str]) -> tuple[str, ...]:
    """The classes by number. Errors: UserError where a number is missing."""
    if sorted(names) != list(range(len(names))):
        raise UserError(f"dataset.json numbers its labels {sorted(names)}; needed are 0 to {len(names) - 1}.")
    return tuple(names[number] for number in sorted(names))


def _nnunet_labels(labels: Mapping[str, Any]) -> dict[int, str]:
    """Number -> name; version 2 has names before numbers, version 1 the other way. Without `ignore`, which is no class."""
    if any(isinstance(value, list) for value in labels.values()):
        raise UserError("nnU-Net folder: labels that are regions of several (lists of numbers) are not read.")
    pairs = [(value, key) if isinstance(value, int) else (int(key), str(value)) for key, value in labels.items()]
    if any(name == "ignore" for _, name in pairs):
        raise UserError(
            "nnU-Net folder: an 'ignore' label is not read. Write it as 255 and leave it out of dataset.json."
        )
    return dict(pairs)


def _stem(path: str | Path) -> str:
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def _number(path: str) -> str:
    """ "0001" of img0001.nii.gz. Errors: UserError."""
    found = re.search(r"(\d{4})\.nii", path)
    if found is None:
        raise UserError(f"BTCV: a volume is called img0001.nii.gz, found '{Path(path).name}'.")
    return found[1]
