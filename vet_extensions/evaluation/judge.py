"""One subject after another to its scores: features, protocols, audit, predictions, shuffled labels. `suite` calls a `Judge`.

What has been scored is read from the evaluation's folder (`subject_scores`).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from dinov2.utils.files import file_sha256
from vet_extensions.evaluation.audit import Auditor
from vet_extensions.evaluation.chance import SHUFFLED_LABELS, shuffled_scores
from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.controls import Subject
from vet_extensions.evaluation.curves import RESOLUTION
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.features import OnProgress
from vet_extensions.evaluation.leaks import NOT_TRAINED
from vet_extensions.evaluation.predictions import Scorer, write_predictions
from vet_extensions.evaluation.results import Result, metric_name
from vet_extensions.evaluation.scoring import Predictions, measure
from vet_extensions.evaluation.shortcuts import METADATA
from vet_extensions.evaluation.statistics import PatientBootstrap
from vet_extensions.evaluation.subject_scores import ScoreStore, SubjectScores, scoring_code
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.evaluation.tuner import Tuner
from vet_extensions.schema import Split

logger = logging.getLogger("vet_extensions")

_SCORING_SHARE = 4
"""Progress counts the scoring of one set of features as a quarter of its embedding."""


class Judge:
    """Scores the subjects of one suite on one data set."""

    def __init__(
        self,
        archive: LabelledImages,
        config: SuiteConfig,
        *,
        out_dir: Path,
        leaks: Mapping[str, str],
        device: str | torch.device,
    ) -> None:
        """leaks: arm -> what was found of its pre-training data in the test split; arms without an entry are controls."""
        self._archive, self._config, self._out_dir, self._leaks = archive, config, out_dir, leaks
        self._tuner = Tuner(archive, config, folder=out_dir / "tuning", device=device)
        self._store = ScoreStore(out_dir)
        cohort, options = archive.cohort, config.bootstrap
        self._bootstrap = PatientBootstrap(
            cohort.patient_codes[cohort.split == Split.TEST], n_resamples=options.n_resamples, seed=options.seed
        )
        n_images = len(cohort.split)
        self._n_embedded = n_images * (1 + len(config.resolution.sizes_px) * (RESOLUTION in config.protocols))
        self._n_plain = n_images + max(1, n_images // _SCORING_SHARE)

    def n_units(self, subject: Subject) -> int:
        """What progress counts for a subject: images that are embedded or trained on, and a share for the scoring."""
        if subject.backbone is None:
            return self._n_plain
        return self._n_plain + self._n_embedded - len(self._archive.cohort.split) + self._tuner.n_images

    def scores(self, subject: Subject, on_progress: OnProgress, *, with_shuffled: bool) -> SubjectScores:
        """All scores of a subject; its predictions are then on disk. with_shuffled: also of the control of shuffled labels."""
        key = {
            "subject": [subject.arm, subject.seed, subject.checkpoint_hash, subject.architecture],
            "leak": self._leak(subject),
            "is_control": subject.arm not in self._leaks,
            "data": [self._archive.content_hash, self._archive.task],
            "facts": {name: values.tolist() for name, values in self._archive.facts.items()},
            "suite": asdict(self._config),
            "shuffled": with_shuffled,
            "code": scoring_code(),
        }
        scores = self._store.read(key)
        if scores is None:
            scores = self._score(subject, on_progress, with_shuffled=with_shuffled)
            self._store.write(key, scores)
        on_progress(self.n_units(subject), self.n_units(subject))
        return scores

    def _score(self, subject: Subject, on_progress: OnProgress, *, with_shuffled: bool) -> SubjectScores:
        archive, config, bootstrap = self._archive, self._config, self._bootstrap
        features = subject.compute(on_progress)
        scorer = Scorer(
            arm=subject.arm,
            seed=subject.seed,
            checkpoint_hash=subject.checkpoint_hash,
            is_control=subject.arm not in self._leaks,
            data=archive.content_hash,
            task=archive.task,
            leak=self._leak(subject),
        )
        auditor = Auditor(archive, bootstrap=bootstrap, confidence=config.bootstrap.confidence)
        files: dict[str, str] = {}

        def keep(predictions: Predictions) -> None:
            path = write_predictions(self._out_dir, scorer, predictions)
            files[path.relative_to(self._out_dir).as_posix()] = file_sha256(path)
            if not scorer.is_control:
                auditor.look_at_predictions(scorer, predictions)

        tuned = None
        if subject.backbone is not None:
            tuned = self._tuner.of(
                subject.backbone, lambda done: on_progress(self._n_embedded + done, self.n_units(subject))
            )
        measured = measure(features, archive, config, bootstrap=bootstrap, on_predictions=keep, tuned=tuned)
        if subject.arm != METADATA:
            auditor.look_at_features(scorer, features.vectors)
        shuffled = list(_shuffled_rows(features, archive, config)) if with_shuffled else []
        return SubjectScores(measured, auditor.rows, shuffled, files)

    def _leak(self, subject: Subject) -> str:
        return self._leaks.get(subject.arm, NOT_TRAINED)


def _shuffled_rows(features: FeatureSet, archive: LabelledImages, config: SuiteConfig) -> Iterator[Result]:
    """The control of shuffled labels; a row that is not at chance is a fault of the scoring, and warned of."""
    for (level, group, protocol, metric), found in shuffled_scores(features, archive, config).items():
        if not found.is_at_chance:
            logger.warning(
                "NOT AT CHANCE: %s, %s, %s scores %.3f [%.3f, %.3f] on shuffled labels. What a probe was taught there is "
                "noise, so the scoring itself knows test labels: believe no row before that is understood.",
                *(level, group, protocol, found.value, found.low, found.high),
            )
        row = Result(
            kind="score",
            arm=SHUFFLED_LABELS,
            level=level,
            group=group,
            protocol=protocol,
            metric=metric_name(metric),
            value=found.value,
            low=found.low,
            high=found.high,
            n_images=found.n_images,
            n_patients=found.n_patients,
            n_labels=found.n_labels,
            n_skipped_labels=0,
            config={"interval": f"over {found.n_deals} deals of the labels", "is_at_chance": found.is_at_chance},
        )
        yield row
        yield replace(row, kind="mean")
