"""Whether a model has seen the patients that it is judged on: its pre-training data against the test split, before anything is
scored. The suite calls `check_runs` and stops at a leak, or prints it on every row where that is allowed.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from dinov2.eval.run_folder import find_checkpoint, read_config
from vet_extensions.data.subsets import images_per_study, share_of_patients
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest
from vet_extensions.manifest.filter import where_true
from vet_extensions.manifest.leaks import find_leaks, salt_fingerprint
from vet_extensions.schema import Split

logger = logging.getLogger("vet_extensions")

NOT_TRAINED = "not trained"
"""What rows of controls say."""

_CLEAN = "none found"
_STUDIES = "VetStudies"
_KEY = re.compile(r":(?=[A-Za-z_]\w*=)")


@dataclass(frozen=True)
class PretrainingCheck:
    """What is known of one run. is_leak: whether test data were seen; sentence: for the rows of results and for the user."""

    is_leak: bool
    sentence: str


def check_pretraining(run_dir_or_checkpoint: str | Path, intake_root: str | Path | None) -> PretrainingCheck:
    """Compare the images that a run was pre-trained on with the test images of an intake folder: patients, studies, images and
    equal pixels. intake_root: None for a data set without a manifest.

    What cannot be compared (no run of this project, another kind of data set, a folder that is not on this machine) is not called
    a leak, but its sentence begins with "unknown".
    """
    try:
        _, config_path = find_checkpoint(run_dir_or_checkpoint)
    except UserError:
        return _unknown("it is no run of this project, which would name its training data")
    if config_path is None:
        return _unknown("the checkpoint has no config.yaml that names its training data")
    dataset = str(OmegaConf.select(read_config(config_path, sections=()), "train.dataset_path", default=""))
    name, *pairs = _KEY.split(dataset)
    options = dict(pair.split("=", 1) for pair in pairs)
    if name != _STUDIES or "root" not in options:
        return _unknown(f"the training data ({name or 'not named'}) have no manifest to compare with")
    if intake_root is None:
        return _unknown("the data that it is judged on have no manifest to compare with")
    try:
        trained_on = _selected(Manifest.open(Path(options["root"])), options)
    except UserError:
        return _unknown("the manifest of the training data is not on this machine, or cannot be read")
    test = Manifest.open(Path(intake_root)).select(split=Split.TEST)
    salts = (salt_fingerprint(Path(options["root"])), salt_fingerprint(Path(intake_root)))
    report = find_leaks(trained_on, test, salts=salts)
    counts = ", ".join(f"{leak.kind} {leak.n_images:,}" for leak in report.leaks if leak.n_images)
    if counts:
        return PretrainingCheck(True, f"LEAK: of {test.n_images:,} test images in pre-training: {counts}")
    if None not in salts and salts[0] != salts[1]:
        return _unknown(
            "no equal pixels, but the two folders were made with different salts, so that patients cannot be compared"
        )
    return PretrainingCheck(False, f"{_CLEAN}: no patient, study, image or pixels of the test split in pre-training")


def check_runs(
    runs: Sequence[str | Path], intake_root: str | Path | None, *, allow_leak: bool = False
) -> list[PretrainingCheck]:
    """`check_pretraining` of every run; raises `UserError` at a leak that is not allowed, logs what is not known to be clean."""
    checks = [check_pretraining(run, intake_root) for run in runs]
    found = [f"'{Path(run).name}': {check.sentence}" for run, check in zip(runs, checks, strict=True) if check.is_leak]
    if found and not allow_leak:
        raise UserError(
            "What was pre-trained on test data cannot be judged on them:\n"
            + "\n".join(found)
            + "\nEvaluate on other patients; "
            "or add --allow-leak (allow_leak=True), and every row of the results will say it."
        )
    for run, check in zip(runs, checks, strict=True):
        if not check.sentence.startswith(_CLEAN):
            logger.warning("pre-training of '%s' against the test split: %s", Path(run).name, check.sentence)
    return checks


def leaks_by_arm(arms: Sequence[str], checks: Sequence[PretrainingCheck]) -> dict[str, str]:
    """Arm -> what is known of its runs; arms: of each run."""
    sentences: dict[str, list[str]] = {}
    for arm, check in zip(arms, checks, strict=True):
        sentences.setdefault(arm, []).append(check.sentence)
    return {arm: "; ".join(dict.fromkeys(given)) for arm, given in sentences.items()}


def _selected(manifest: Manifest, options: dict[str, str]) -> Manifest:
    """The images that a data set string chooses, as `MultiViewStudyDataset` does."""
    split = options.get("split", str(Split.TRAIN))
    chosen = manifest if split == "all" else manifest.select(split=split)
    if "where" in options:
        chosen = where_true(chosen, options["where"])
    if "patients" in options:
        chosen = share_of_patients(chosen, float(options["patients"]))
    if "views_per_study" in options:
        chosen = images_per_study(chosen, int(options["views_per_study"]))
    return chosen


def _unknown(reason: str) -> PretrainingCheck:
    return PretrainingCheck(False, f"unknown: {reason}")
