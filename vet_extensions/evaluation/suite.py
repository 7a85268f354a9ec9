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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinov2.eval.run_folder import list_checkpoints
from vet_extensions.errors import UserError
from vet_extensions.evaluation.audit import AUDIT_FILE, append_audit
from vet_extensions.evaluation.backbones import open_backbone
from vet_extensions.evaluation.chance import SHUFFLED_LABELS
from vet_extensions.evaluation.checks import check_cohort
from vet_extensions.evaluation.cohort import LabelledImages, open_archive
from vet_extensions.evaluation.controls import (
    RANDOM_INIT,
    Subject,
    archive_features,
    control_subjects,
    trained_subjects,
)
from vet_extensions.evaluation.datasets import archive_root, open_data
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.features import OnProgress, short_hash
from vet_extensions.evaluation.judge import Judge
from vet_extensions.evaluation.knn import knn_scores
from vet_extensions.evaluation.leaks import NOT_TRAINED, check_runs, leaks_by_arm
from vet_extensions.evaluation.metrics import AUROC, label_metrics, macro
from vet_extensions.evaluation.results import (
    RESULTS_FILE,
    Measured,
    Measurement,
    Result,
    append_results,
    read_results,
    result_row,
)
from vet_extensions.evaluation.scoring import label_groups
from vet_extensions.evaluation.shortcuts import METADATA, fact_features
from vet_extensions.evaluation.statistics import (
    average,
    macro_difference,
    macro_estimate,
)
from vet_extensions.evaluation.store import FeatureStore
from vet_extensions.evaluation.subject_scores import SubjectScores
from vet_extensions.evaluation.suite_config import SuiteConfig, load_suite
from vet_extensions.schema import Split

logger = logging.getLogger("vet_extensions")


def run_suite(
    specs: Sequence[str | Path],
    data: str | Path,
    suite_config: SuiteConfig | Mapping[str, Any] | str | Path,
    out_dir: str | Path,
    *,
    on_progress: OnProgress | None = None,
    device: str | torch.device = "cpu",
    allow_leak: bool = False,
) -> list[Result]:
    """Judge every backbone beside its controls; add what is new to out_dir/results.jsonl; return all rows.

    What an earlier call with the same out_dir has embedded, trained or scored is read: one that was interrupted goes on.

    specs: run folders (their newest checkpoint), checkpoints, or whatever else `backbones.open_backbone` takes. The arm of a run
    is its routing.name, its seed train.seed; further ones of the same arm and seed become "<arm>#2" and so on. data:
    an intake folder, or what else `datasets.open_data` takes. on_progress counts images: all of every subject, a quarter for
    their scoring, and those of trainings. Raises `UserError` where a run was pre-trained on test data; with allow_leak every row
    says so instead.
    """
    config, out_dir = load_suite(suite_config), Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(
            f"'{out_dir.name}' is a file, and the results need a folder. Give another one; it is made if it does not exist."
        )
    if (out_dir / RESULTS_FILE).is_file():
        read_results(out_dir / RESULTS_FILE)  # what cannot be added to is refused before the work
    archive = open_data(data)
    check_cohort(archive, config)
    pretraining = check_runs(specs, archive_root(data), allow_leak=allow_leak)
    store = FeatureStore(out_dir / "features")
    subjects = trained_subjects(specs, archive, config, store=store, device=device)
    leaks = leaks_by_arm([subject.arm for subject in subjects], pretraining)
    subjects += control_subjects(specs, archive, config, store=store, device=device)
    subjects += _metadata_subjects(archive, config)

    judge = Judge(archive, config, out_dir=out_dir, leaks=leaks, device=device)
    report = on_progress or (lambda done, total: None)
    work = [judge.n_units(subject) for subject in subjects]
    scored: list[tuple[Subject, SubjectScores]] = []
    for place, subject in enumerate(subjects):
        with_shuffled = place == 0 and SHUFFLED_LABELS in config.controls
        at = partial(_count, report, before=sum(work[:place]), total=sum(work))
        scored.append((subject, judge.scores(subject, at, with_shuffled=with_shuffled)))
    measured = [(subject, scores.measured) for subject, scores in scored]
    shuffled = [row for _, scores in scored for row in scores.shuffled]
    shared = {"suite": short_hash(asdict(config)), "manifest": archive.content_hash, **_shared_config(config)}
    if archive.policy:
        shared["data"] = {"name": archive.name, **archive.policy}
    results = [
        replace(row, config={**shared, "leak": leaks.get(row.arm, NOT_TRAINED), **row.config})
        for row in [*_rows(measured, config.bootstrap.confidence), *shuffled]
    ]
    append_results(out_dir / RESULTS_FILE, results)
    append_audit(out_dir / AUDIT_FILE, (row for _, scores in scored for row in scores.audit))
    return results


def knn_curve(
    run_dir: str | Path,
    intake_root: str | Path,
    suite_config: SuiteConfig | Mapping[str, Any] | str | Path,
    *,
    cache_dir: str | Path,
    max_bank_images: int | None = None,
    on_progress: OnProgress | None = None,
    device: str | torch.device = "cpu",
) -> list[tuple[int, float]]:
    """(iteration, k-NN macro AUROC of the validation images) of every teacher checkpoint of a run; test stays unseen.

    Over the gross findings where the archive has them, else over all; k is the suite's first. max_bank_images: search an
    evenly spaced part of the training images. cache_dir: the folder of a feature store.
    """
    config, archive = load_suite(suite_config), open_archive(intake_root)
    bank, val = (np.flatnonzero(archive.cohort.split == split) for split in (Split.TRAIN, Split.VAL))
    if not len(val):
        raise UserError("The manifest has no images in split val, which a k-NN curve is measured on.")
    if max_bank_images is not None and len(bank) > max_bank_images:
        bank = bank[np.linspace(0, len(bank) - 1, max_bank_images).astype(np.intp)]
    rows = np.concatenate([bank, val])
    columns = next(
        iter(label_groups(archive.label_names, replace(config, groups=("gross", "all")), level="image").values())
    )
    bank_labels, val_labels = (archive.cohort.labels[part][:, columns] for part in (bank, val))
    checkpoints = list_checkpoints(run_dir)
    store = FeatureStore(Path(cache_dir))
    report = on_progress or (lambda done, total: None)
    curve = []
    for place, (iteration, path) in enumerate(checkpoints):
        features = archive_features(
            open_backbone(path),
            archive,
            config,
            lambda done, _, place=place: report(place * len(rows) + done, len(checkpoints) * len(rows)),
            store=store,
            device=device,
            rows=rows,
        ).vectors(config.tokens)
        scores = knn_scores(
            features[len(bank) :],
            bank=features[: len(bank)],
            bank_labels=bank_labels,
            ks=(min(config.knn.ks[0], len(bank)),),
            temperature=config.knn.temperature,
        )
        curve.append((iteration, macro(label_metrics(scores[0], labels=val_labels)[AUROC][:, 0])[0]))
    return curve


def _count(report: OnProgress, done: int, _: int, *, before: int, total: int) -> None:
    report(before + done, total)


def _metadata_subjects(archive: LabelledImages, config: SuiteConfig) -> list[Subject]:
    """The control that knows the facts of an image and no pixel; none where no fact differs among the training images."""
    if METADATA not in config.controls:
        return []
    features = fact_features(archive.facts, is_bank=archive.cohort.split == Split.TRAIN)
    if features is None:
        logger.info("no fact differs among the training images: there is no metadata control")
        return []
    return [Subject(METADATA, None, None, "", "", lambda _: FeatureSet(features))]


def _shared_config(config: SuiteConfig) -> dict[str, Any]:
    return {
        "image_size_px": config.image_size_px,
        "tokens": config.tokens,
        "temperature": config.knn.temperature,
        **{f"bootstrap_{name}": value for name, value in asdict(config.bootstrap).items()},
    }


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
