"""What is judged: labelled images with their splits, patients and studies. Every protocol, control and statistic takes this.

An intake folder is opened here (`open_archive`); the adapters of public data sets make the same value.
Shape legend: n images, L labels, D feature width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.features import PixelsSource
from vet_extensions.manifest import Manifest
from vet_extensions.schema import Split, view_family
from vet_extensions.shards import ShardReader

MULTILABEL, MULTICLASS = "multilabel", "multiclass"
FACTS = ("view", "body_part", "species", "laterality")
"""Columns of a manifest that are kept as facts."""


@dataclass(frozen=True)
class Cohort:
    """The rows to be judged: images, or studies. All arrays have one entry a row; labels: [n, L] int8."""

    split: NDArray[np.str_]
    family: NDArray[np.str_]
    patient_codes: NDArray[np.integer]
    study_codes: NDArray[np.integer]
    labels: NDArray[np.integer]

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer]) -> "Cohort":
        """Some rows, in their order."""
        return Cohort(
            self.split[rows], self.family[rows], self.patient_codes[rows], self.study_codes[rows], self.labels[rows]
        )

    def by_study(self) -> "Cohort":
        """One row a study, in order of study code. A study's label is the strongest statement among its images: present,
        then uncertain, then absent, then missing."""
        studies, first, study = np.unique(self.study_codes, return_index=True, return_inverse=True)
        strength = np.select([self.labels == 1, self.labels == -1, self.labels == 0], [3, 2, 1], default=0)
        strongest = np.zeros((len(studies), self.labels.shape[1]), dtype=np.intp)
        np.maximum.at(strongest, study, strength)
        labels = np.array([-128, 0, -1, 1], dtype=np.int8)[strongest]
        return Cohort(self.split[first], np.full(len(studies), "study"), self.patient_codes[first], studies, labels)

    def pool_by_study(self, features: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Image features [n, D] -> study features [n_studies, families * D], and the families each study lacks, [n_studies].

        A block per view family: the mean of the L2-normalised features of its images, zeros where a study has none. Families
        that no training image has are left out for all.
        """
        unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        studies, study = np.unique(self.study_codes, return_inverse=True)
        families = sorted(set(self.family[self.split == "train"].tolist()))
        pooled = np.zeros((len(studies), len(families), features.shape[1]), dtype=np.float32)
        n_images = np.zeros((len(studies), len(families)), dtype=np.intp)
        for block, family in enumerate(families):
            rows = self.family == family
            np.add.at(pooled[:, block], study[rows], unit[rows])
            n_images[:, block] = np.bincount(study[rows], minlength=len(studies))
        pooled /= np.maximum(n_images, 1)[..., None]
        return pooled.reshape(len(studies), -1), (n_images == 0).sum(axis=1)


def pool_scores(scores: NDArray[np.floating], *, study_codes: NDArray[np.integer], how: str) -> NDArray[np.floating]:
    """Scores of images [G, n, L] -> scores of their studies [G, n_studies, L], in order of study code.

    how: "mean" or "max" over the images of a study. A column without a model is NaN and stays so.
    """
    studies, study = np.unique(study_codes, return_inverse=True)
    if how == "max":
        pooled = np.full((len(studies), scores.shape[0], scores.shape[2]), -np.inf, dtype=scores.dtype)
        np.maximum.at(pooled, study, scores.transpose(1, 0, 2))
    else:
        pooled = np.zeros((len(studies), scores.shape[0], scores.shape[2]), dtype=scores.dtype)
        np.add.at(pooled, study, scores.transpose(1, 0, 2))
        pooled /= np.bincount(study, minlength=len(studies))[:, None, None]
    return pooled.transpose(1, 0, 2)


@dataclass(frozen=True)
class LabelledImages:
    """A data set as the protocols see it: images in a fixed order.

    task: MULTILABEL, each label by itself; or MULTICLASS, exactly one of the labels is 1 in every row. content_hash: of all that
    decides images, labels and splits. facts: what else is stated of each image, name -> [n] texts, "" where it is not; never used
    to predict, but to see what can be read from features and for whom a score holds. policy: what was decided about labels and
    splits, in words, for the results. ids: "image", "study" and "patient" -> [n] texts that name them in tables of predictions.
    """

    name: str
    cohort: Cohort
    label_names: tuple[str, ...]
    reader: PixelsSource
    content_hash: str
    task: str = MULTILABEL
    facts: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    policy: Mapping[str, str] = field(default_factory=dict)
    ids: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def id_of(self, what: str) -> NDArray[np.str_]:
        """The names of each image's "image", "study" or "patient", [n]: its number where the data set gives none."""
        if what in self.ids:
            return self.ids[what]
        n = len(self.cohort.split)
        codes = {"image": np.arange(n), "study": self.cohort.study_codes, "patient": self.cohort.patient_codes}
        return codes[what].astype(str)


def open_archive(intake_root: str | Path) -> LabelledImages:
    """The labels, views and splits of an intake folder; raises `UserError` where there is nothing to judge with."""
    root = Path(intake_root)
    manifest = Manifest.open(root)
    split = _texts(manifest, "split")
    if not manifest.label_names:
        raise UserError(
            "The manifest has no label columns, so there is nothing to score. Give a table of labels to the intake."
        )
    absent = [name for name in (Split.TRAIN, Split.TEST) if not (split == name).any()]
    if absent:
        raise UserError(
            f"The manifest has no images in split {' and '.join(absent)}. Split it by patient with the intake."
        )
    views, inverse = np.unique(manifest.views.astype(str), return_inverse=True)
    family = np.array([str(view_family(view)) for view in views])[inverse]
    return LabelledImages(
        name="intake folder",
        cohort=Cohort(split, family, manifest.patient_codes, manifest.study_codes, manifest.labels()),
        label_names=tuple(manifest.label_names),
        reader=ShardReader(root),
        content_hash=manifest.content_hash,
        facts={name: _texts(manifest, name) for name in FACTS},
        ids={name: _texts(manifest, f"{name}_id") for name in ("image", "study", "patient")},
    )


def _texts(manifest: Manifest, name: str) -> NDArray[np.str_]:
    """A text column, [n]; "" for null, and for all where there is no such column."""
    if name not in manifest.column_names:
        return np.full(manifest.n_images, "")
    values, codes = manifest.codes(name)
    return np.array(values, dtype=str)[codes] if len(values) else np.full(manifest.n_images, "")
