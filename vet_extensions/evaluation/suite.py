"""The evaluation of frozen backbones on an intake folder: embed once, probe at every level, intervals, controls, comparisons.

`vetdino evaluate` and the demo call `run_suite`; `knn_curve` follows one run over its checkpoints. The split decides the roles:
train is the bank that is searched or fitted on, val chooses hyper-parameters, test is scored, once.

Levels: "image" (all images), "lateral" and "frontal" (bank and queries of one view family), "cross_view" (queries of one
family against the bank of the other, mean of both directions; only for findings, which belong to the study), "study" (one
feature a study, see `Cohort.pool_by_study`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinov2.eval.run_folder import list_checkpoints
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import Cohort, LabelledImages, open_archive
from vet_extensions.evaluation.controls import (
    RANDOM_INIT,
    Subject,
    control_subjects,
    embed_checkpoint,
    trained_subjects,
)
from vet_extensions.evaluation.features import FeatureCache, OnProgress, short_hash
from vet_extensions.evaluation.metrics import AUROC, METRICS, label_metrics, macro
from vet_extensions.evaluation.probes import (
    Candidates,
    ProbeData,
    knn_probe,
    knn_scores,
    linear_probe,
)
from vet_extensions.evaluation.results import (
    RESULTS_FILE,
    Measured,
    Measurement,
    Result,
    SuiteConfig,
    append_results,
    load_suite,
    result_row,
)
from vet_extensions.evaluation.statistics import (
    LabelSamples,
    PatientBootstrap,
    average,
    concatenate,
    macro_difference,
    macro_estimate,
)
from vet_extensions.schema import FINDINGS, GROSS_FINDINGS, Split

logger = logging.getLogger("vet_extensions")

_FOLDS: dict[str, tuple[tuple[str | None, str | None], ...]] = {
    "image": ((None, None),),
    "lateral": (("lateral", "lateral"),),
    "frontal": (("frontal", "frontal"),),
    "cross_view": (("frontal", "lateral"), ("lateral", "frontal")),
    "study": ((None, None),),
}
"""Level -> (family of the bank, family of the queries) of each fold; None: all rows."""

_SCORING_SHARE = 4
"""Progress counts the scoring of one set of features as a quarter of its embedding."""


def run_suite(
    run_dirs_or_checkpoints: Sequence[str | Path],
    intake_root: str | Path,
    suite_config: SuiteConfig | Mapping[str, Any] | str | Path,
    out_dir: str | Path,
    *,
    on_progress: OnProgress | None = None,
    device: str | torch.device = "cpu",
) -> list[Result]:
    """Judge the newest (or given) checkpoint of every run beside its controls; append to out_dir/results.jsonl; return the rows.

    An arm is the run's routing.name, its seed train.seed; further checkpoints of the same arm and seed become "<arm>#2" and so
    on. on_progress counts images: all of every subject, and a quarter for their scoring.
    """
    config, out_dir = load_suite(suite_config), Path(out_dir)
    archive = open_archive(intake_root)
    cache = FeatureCache(out_dir / "features")
    subjects = trained_subjects(run_dirs_or_checkpoints, archive, config, cache=cache, device=device)
    subjects += control_subjects(run_dirs_or_checkpoints, archive, config, cache=cache, device=device)

    n_images = len(archive.cohort.split)
    share = max(1, n_images // _SCORING_SHARE)
    report = on_progress or (lambda done, total: None)
    total = len(subjects) * (n_images + share)
    test_patients = archive.cohort.patient_codes[archive.cohort.split == Split.TEST]
    bootstrap = PatientBootstrap(test_patients, n_resamples=config.bootstrap.n_resamples, seed=config.bootstrap.seed)
    measured: list[tuple[Subject, dict[Measurement, Measured]]] = []
    for place, subject in enumerate(subjects):
        before = place * (n_images + share)
        features = subject.compute(lambda done, _, before=before: report(before + done, total))
        measured.append((subject, measure(features, archive, config, bootstrap=bootstrap)))
        report(before + n_images + share, total)
    shared = {"suite": short_hash(asdict(config)), "manifest": archive.content_hash, **_shared_config(config)}
    results = [replace(row, config={**shared, **row.config}) for row in _rows(measured, config.bootstrap.confidence)]
    append_results(out_dir / RESULTS_FILE, results)
    return results


def measure(
    features: NDArray[np.floating], archive: LabelledImages, config: SuiteConfig, *, bootstrap: PatientBootstrap
) -> dict[Measurement, Measured]:
    """Every level, group, protocol and metric of one set of features [n_images, D]."""
    measured: dict[Measurement, Measured] = {}
    for level in config.levels:
        cohort, level_features, details = archive.cohort, features, {}
        if level == "study":
            level_features, n_missing = archive.cohort.pool_by_study(features)
            cohort = archive.cohort.by_study()
            details = {"n_missing_families": int(n_missing[cohort.split == Split.TEST].sum())}
        groups = _groups(archive.label_names, config, level=level)
        for protocol in config.protocols:
            folds = _folds(level_features, cohort, config, level=level, protocol=protocol)
            if folds is None:
                logger.info("level %s, %s: too few images of its views, skipped", level, protocol)
                continue
            for group, columns in groups.items():
                found = _measure_group(folds, columns, bootstrap=bootstrap)
                names = tuple(archive.label_names[column] for column in columns)
                for metric, (samples, chosen) in found.items():
                    measured[level, group, protocol, metric] = Measured(
                        samples=samples,
                        labels=names,
                        n_images=sum(len(fold.test_labels) for fold in folds),
                        n_patients=len(np.unique(np.concatenate([fold.patient_codes for fold in folds]))),
                        chosen={folds[0].candidates.parameter: chosen},
                        config=details,
                    )
    return measured


def knn_curve(
    run_dir: str | Path,
    intake_root: str | Path,
    suite_config: SuiteConfig | Mapping[str, Any] | str | Path,
    *,
    cache_dir: str | Path | None = None,
    max_bank_images: int | None = None,
    on_progress: OnProgress | None = None,
    device: str | torch.device = "cpu",
) -> list[tuple[int, float]]:
    """(iteration, k-NN macro AUROC of the validation images) of every teacher checkpoint of a run; test stays unseen.

    Over the gross findings where the archive has them, else over all; k is the suite's first. max_bank_images: search an
    evenly spaced part of the training images. cache_dir: where features are kept, None to keep nothing.
    """
    config, archive = load_suite(suite_config), open_archive(intake_root)
    bank, val = (np.flatnonzero(archive.cohort.split == split) for split in (Split.TRAIN, Split.VAL))
    if not len(val):
        raise UserError("The manifest has no images in split val, which a k-NN curve is measured on.")
    if max_bank_images is not None and len(bank) > max_bank_images:
        bank = bank[np.linspace(0, len(bank) - 1, max_bank_images).astype(np.intp)]
    rows = np.concatenate([bank, val])
    columns = next(iter(_groups(archive.label_names, replace(config, groups=("gross", "all")), level="image").values()))
    bank_labels, val_labels = (archive.cohort.labels[part][:, columns] for part in (bank, val))
    checkpoints = list_checkpoints(run_dir)
    cache = None if cache_dir is None else FeatureCache(Path(cache_dir))
    report = on_progress or (lambda done, total: None)
    curve = []
    for place, (iteration, path) in enumerate(checkpoints):
        features = embed_checkpoint(
            path,
            archive,
            config,
            lambda done, _, place=place: report(place * len(rows) + done, len(checkpoints) * len(rows)),
            cache=cache,
            device=device,
            rows=rows,
        )
        scores = knn_scores(
            features[len(bank) :],
            bank=features[: len(bank)],
            bank_labels=bank_labels,
            ks=(min(config.knn.ks[0], len(bank)),),
            temperature=config.knn.temperature,
        )
        curve.append((iteration, macro(label_metrics(scores[0], labels=val_labels)[AUROC][:, 0])[0]))
    return curve


class _Fold:
    """The scores of one bank on one set of queries, for all labels and hyper-parameter candidates, and their resamples."""

    def __init__(
        self,
        candidates: Candidates,
        *,
        val_labels: NDArray[np.integer],
        test_labels: NDArray[np.integer],
        patient_codes: NDArray[np.integer],
    ) -> None:
        self.candidates, self.val_labels = candidates, val_labels
        self.test_labels, self.patient_codes = test_labels, patient_codes
        self._known: dict[tuple[int, int], dict[str, LabelSamples]] = {}

    def label_samples(
        self, place: int, columns: Sequence[int], *, bootstrap: PatientBootstrap
    ) -> dict[str, LabelSamples]:
        """Both metrics of candidate `place` for label columns; groups that share a label share its resamples."""
        new = [column for column in columns if (place, column) not in self._known]
        if new:
            found = bootstrap.label_samples(
                self.candidates.test[place][:, new], labels=self.test_labels[:, new], patient_codes=self.patient_codes
            )
            for at, column in enumerate(new):
                self._known[place, column] = {metric: found[metric].select([at]) for metric in METRICS}
        return {metric: concatenate([self._known[place, column][metric] for column in columns]) for metric in METRICS}


def _shared_config(config: SuiteConfig) -> dict[str, Any]:
    return {
        "image_size_px": config.image_size_px,
        "tokens": config.tokens,
        "temperature": config.knn.temperature,
        **{f"bootstrap_{name}": value for name, value in asdict(config.bootstrap).items()},
    }


def _groups(label_names: Sequence[str], config: SuiteConfig, *, level: str) -> dict[str, list[int]]:
    """Group of labels -> its columns; without those that the archive or the level has no labels for."""
    columns = {name: column for column, name in enumerate(label_names)}
    members = {
        "gross": [columns[name] for name in GROSS_FINDINGS] if set(GROSS_FINDINGS) <= set(columns) else [],
        "all": list(columns.values()),
    }
    if level == "cross_view":  # other labels may belong to one image, and the other view cannot tell them
        members = {group: [c for c in members[group] if label_names[c] in FINDINGS] for group in members}
    return {group: members[group] for group in config.groups if members[group]}


def _folds(
    features: NDArray[np.floating], cohort: Cohort, config: SuiteConfig, *, level: str, protocol: str
) -> list[_Fold] | None:
    """The probe's scores for each (bank, queries) of a level; None where a bank or a test set is empty."""
    folds = []
    for bank_family, query_family in _FOLDS[level]:
        in_bank, in_query = (
            np.ones(len(cohort.split), dtype=bool) if family is None else cohort.family == family
            for family in (bank_family, query_family)
        )
        bank = in_bank & (cohort.split == Split.TRAIN)
        val, test = (in_query & (cohort.split == split) for split in (Split.VAL, Split.TEST))
        ks = tuple(k for k in config.knn.ks if k <= bank.sum())
        if not bank.any() or not test.any() or (protocol == "knn" and not ks):
            return None
        parts = [ProbeData(features[rows], cohort.labels[rows]) for rows in (bank, val, test)]
        if protocol == "knn":
            candidates = knn_probe(parts[0], val=parts[1], test=parts[2], ks=ks, temperature=config.knn.temperature)
        else:
            grid, n_max = config.linear.c_grid, config.linear.max_iterations
            candidates = linear_probe(parts[0], val=parts[1], test=parts[2], c_grid=grid, max_iterations=n_max)
        patient_codes = cohort.patient_codes[test]
        fold = _Fold(candidates, val_labels=parts[1].labels, test_labels=parts[2].labels, patient_codes=patient_codes)
        folds.append(fold)
    return folds


def _measure_group(
    folds: Sequence[_Fold], columns: Sequence[int], *, bootstrap: PatientBootstrap
) -> dict[str, tuple[LabelSamples, list[float]]]:
    """Metric -> (its resamples for the label columns, mean over folds; the hyper-parameter each fold chose on val)."""
    samples: dict[str, list[LabelSamples]] = {metric: [] for metric in METRICS}
    chosen = []
    for fold in folds:
        place = fold.candidates.select(fold.val_labels, columns=columns)
        chosen.append(fold.candidates.values[place])
        found = bootstrap.label_samples(
            fold.candidates.test[place][:, columns],
            labels=fold.test_labels[:, columns],
            patient_codes=fold.patient_codes,
        )
        for metric in METRICS:
            samples[metric].append(found[metric])
    return {metric: (average(parts), chosen) for metric, parts in samples.items()}


Arm = list[tuple[Subject, dict[Measurement, Measured]]]


def _rows(measured: Arm, confidence: float) -> Iterator[Result]:
    """All rows: every subject, the mean of every arm over its seeds, then the comparisons."""
    arms: dict[str, Arm] = {}
    for subject, found in measured:
        arms.setdefault(subject.arm, []).append((subject, found))
        for key, one in found.items():
            estimate = macro_estimate(one.samples, confidence=confidence)
            yield replace(
                result_row("score", subject.arm, key, one, estimate),
                seed=subject.seed,
                iteration=subject.iteration,
                checkpoint_hash=subject.checkpoint_hash,
                config={**one.config, **one.chosen},
            )
    for arm, members in arms.items():
        for key, one in members[0][1].items():
            mean = average([found[key].samples for _, found in members])
            row = result_row("mean", arm, key, one, macro_estimate(mean, confidence=confidence))
            yield replace(row, n_seeds=len(members), config={**row.config, "seeds": [s.seed for s, _ in members]})
    yield from _comparisons(arms, confidence)


def _comparisons(arms: Mapping[str, Arm], confidence: float) -> Iterator[Result]:
    """Every arm minus the random init of its architecture, and vet_dino minus same_image; over the seeds both have."""
    pairs = [
        (arm, baseline)
        for arm, members in arms.items()
        for baseline, others in arms.items()
        if baseline.startswith(RANDOM_INIT) and not arm.startswith(RANDOM_INIT)
        and members[0][0].architecture == others[0][0].architecture
    ]  # fmt: skip
    if "vet_dino" in arms and "same_image" in arms:
        pairs.append(("vet_dino", "same_image"))
    for arm, baseline in pairs:
        first, second = ({s.seed: found for s, found in arms[name]} for name in (arm, baseline))
        seeds = sorted(first.keys() & second.keys(), key=str)
        if not seeds:
            logger.warning("%s and %s share no seed and are not compared", arm, baseline)
            continue
        for key, one in first[seeds[0]].items():
            estimate = macro_difference(
                average([first[seed][key].samples for seed in seeds]),
                average([second[seed][key].samples for seed in seeds]),
                confidence=confidence,
            )
            row = result_row("difference", arm, key, one, estimate)
            yield replace(row, baseline=baseline, n_seeds=len(seeds), config={**row.config, "seeds": seeds})
