"""The segmentation of one data set by several backbones and decoders, beside untrained networks and the truth on the patch grid.

`vetdino segment` calls `run_segmentation`. Rows go to results.jsonl like those of the suite: level "image", group "all" (mean
over classes) or one class, protocol "segment_<decoder>"; kind "difference" is paired over the same resamples of patients.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vet_extensions.evaluation.backbones import open_backbone
from vet_extensions.evaluation.controls import RANDOM_INIT
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.features import OnProgress
from vet_extensions.evaluation.results import RESULTS_FILE, Measured, Result, append_results, result_row
from vet_extensions.evaluation.segmentation.decoders import count_parameters
from vet_extensions.evaluation.segmentation.dense import patch_grid_truth
from vet_extensions.evaluation.segmentation.losses import build_loss
from vet_extensions.evaluation.segmentation.metrics import EMPTY_CLASS_POLICY
from vet_extensions.evaluation.segmentation.scores import SCORES, CaseScores, score_case, stack_scores
from vet_extensions.evaluation.segmentation.sets import SegmentationSet
from vet_extensions.evaluation.segmentation.training import SegmentationConfig, check_sizes, fit, predict
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap, macro_difference, macro_estimate
from vet_extensions.schema import Split

PATCH_GRID_TRUTH = "patch_grid_truth"
FITS_FOLDER = "decoders"


@dataclass(frozen=True)
class _Subject:
    """A backbone, or the control of one: `baseline` is the arm it is compared with."""

    arm: str
    backbone: Backbone
    baseline: str | None


def run_segmentation(
    specs: Sequence[str | Path],
    data: SegmentationSet,
    out_dir: str | Path,
    config: SegmentationConfig,
    *,
    has_control: bool = True,
    on_progress: OnProgress | None = None,
    device: str | torch.device = "cpu",
) -> list[Result]:
    """Train every decoder on every backbone, score the test cases once, append to out_dir/results.jsonl, return the rows.

    specs: what `backbones.open_backbone` takes. has_control: also the same networks with random weights, and the difference to
    them. on_progress counts epochs. Finished fits are kept under out_dir/decoders and not repeated; an interrupted one goes on. A
    score that no test case defines is NaN, never 0. Raises `UserError` before anything is trained where it can.
    """
    out_dir = Path(out_dir)
    build_loss(config.loss)  # lets an absent monai speak first
    subjects = _subjects(specs, has_control=has_control)
    for subject in subjects:
        check_sizes(subject.backbone, config)
    test = data.rows(Split.TEST)
    bootstrap = PatientBootstrap(
        data.patient_codes[test], n_resamples=config.bootstrap.n_resamples, seed=config.bootstrap.seed
    )
    n_epochs, n_done = len(subjects) * len(config.decoders) * len(config.learning_rates) * config.epochs, 0

    def count() -> None:
        nonlocal n_done
        n_done += 1
        if on_progress is not None:
            on_progress(n_done, n_epochs)

    rows: list[Result] = []
    for grid in dict.fromkeys(_grid(subject.backbone, config) for subject in subjects):
        found = _measure(
            _patch_grid_truths(data, test, config, grid=grid), data, test, config, bootstrap, {"patch_grid": list(grid)}
        )
        rows += _score_rows(PATCH_GRID_TRUTH, "segment_patch_grid", found, config)
    for decoder in config.decoders:
        of_arm: dict[str, dict[str, Measured]] = {}
        for subject in subjects:
            fitted = fit(
                subject.backbone,
                data,
                config,
                decoder=decoder,
                folder=out_dir / FITS_FOLDER,
                device=device,
                on_epoch=count,
            )
            facts = {
                "learning_rate": fitted.learning_rate,
                "epoch": fitted.epoch,
                "val_case_dice": fitted.val_dice,
                "n_decoder_parameters": count_parameters(fitted.segmenter.decoder),
                "n_tuned_parameters": count_parameters(fitted.segmenter),
                "image_size_px": config.image_size_px or subject.backbone.image_size_px,
            }
            cases = [
                _score(predict(fitted.segmenter, data.read(row), config), data, row, config) for row in test.tolist()
            ]
            of_arm[subject.arm] = _measure(stack_scores(cases), data, test, config, bootstrap, facts)
            backbone = subject.backbone
            rows += [
                replace(row, seed=backbone.seed, iteration=backbone.iteration, checkpoint_hash=backbone.weights_hash)
                for row in _score_rows(subject.arm, f"segment_{decoder}", of_arm[subject.arm], config)
            ]
        for subject in subjects:
            if subject.baseline is not None:
                rows += _difference_rows(subject, f"segment_{decoder}", of_arm, config)
    append_results(out_dir / RESULTS_FILE, rows)
    return rows


def _subjects(specs: Sequence[str | Path], *, has_control: bool) -> list[_Subject]:
    """The backbones, each with its baseline (its control; without controls the first backbone), and the controls they share."""
    subjects: list[_Subject] = []
    controls: dict[tuple[str, int], _Subject] = {}
    seen: Counter[str] = Counter()
    for backbone in map(open_backbone, specs):
        seen[backbone.name] += 1
        arm = backbone.name if seen[backbone.name] == 1 else f"{backbone.name}#{seen[backbone.name]}"
        baseline = subjects[0].arm if subjects else None
        if has_control and backbone.untrained is not None:
            key = (backbone.architecture, backbone.seed or 0)
            name = RANDOM_INIT if not controls else f"{RANDOM_INIT}#{len(controls) + 1}"
            controls.setdefault(key, _Subject(name, backbone.untrained(key[1]), None))
            baseline = controls[key].arm
        subjects.append(_Subject(arm, backbone, baseline))
    return [*subjects, *controls.values()]


def _grid(backbone: Backbone, config: SegmentationConfig) -> tuple[int, int]:
    """(image_size_px, patch_size)."""
    return config.image_size_px or backbone.image_size_px, backbone.patch_size or 1


def _patch_grid_truths(
    data: SegmentationSet, test: NDArray[np.intp], config: SegmentationConfig, *, grid: tuple[int, int]
) -> CaseScores:
    cases = []
    for row in test.tolist():
        truth = data.checked_mask(row, shape=data.read(row).shape)
        drawn = patch_grid_truth(truth, image_size_px=grid[0], patch_size=grid[1], n_classes=len(data.class_names))
        cases.append(_score(drawn, data, row, config))
    return stack_scores(cases)


def _score(
    found: NDArray[np.int64], data: SegmentationSet, row: int, config: SegmentationConfig
) -> dict[str, list[float]]:
    return score_case(
        found,
        data.checked_mask(row, shape=found.shape),
        n_classes=len(data.class_names),
        spacing_mm=data.spacing_mm[row].tolist(),
        tolerance_mm=config.tolerance_mm,
    )


def _measure(
    scores: CaseScores,
    data: SegmentationSet,
    test: NDArray[np.intp],
    config: SegmentationConfig,
    bootstrap: PatientBootstrap,
    facts: dict[str, Any],
) -> dict[str, Measured]:
    """Score -> its measurement on the test cases."""
    shared = {
        "data": data.content_hash,
        "data_name": data.name,
        "policy": {**data.policy, "empty_class": EMPTY_CLASS_POLICY},
        "n_cases_without_spacing": int(np.isnan(data.spacing_mm[test]).any(axis=1).sum()),
        "leak": "unknown: the masks have no manifest to compare the pre-training data with",
        **{
            key: value for key, value in asdict(config).items() if key not in ("decoders", "image_size_px", "bootstrap")
        },
        **{f"bootstrap_{key}": value for key, value in asdict(config.bootstrap).items()},
        **facts,
    }
    n_patients = len(np.unique(data.patient_codes[test]))
    samples = scores.samples(bootstrap, patient_codes=data.patient_codes[test])
    return {name: Measured(samples[name], data.class_names[1:], len(test), n_patients, {}, shared) for name in SCORES}


def _groups(measured: Measured) -> Iterator[tuple[str, Measured, LabelSamples]]:
    """All classes together, then each."""
    yield "all", measured, measured.samples
    for column, name in enumerate(measured.labels):
        yield name, replace(measured, labels=(name,)), measured.samples.select([column])


def _score_rows(arm: str, protocol: str, found: dict[str, Measured], config: SegmentationConfig) -> Iterator[Result]:
    for metric, measured in found.items():
        for group, of_group, samples in _groups(measured):
            estimate = macro_estimate(samples, confidence=config.bootstrap.confidence)
            yield result_row("score", arm, ("image", group, protocol, metric), of_group, estimate)


def _difference_rows(
    subject: _Subject, protocol: str, of_arm: dict[str, dict[str, Measured]], config: SegmentationConfig
) -> Iterator[Result]:
    assert subject.baseline is not None, "only arms with a baseline are compared"
    for metric, measured in of_arm[subject.arm].items():
        others = {group: samples for group, _, samples in _groups(of_arm[subject.baseline][metric])}
        for group, of_group, samples in _groups(measured):
            estimate = macro_difference(samples, others[group], confidence=config.bootstrap.confidence)
            row = result_row("difference", subject.arm, ("image", group, protocol, metric), of_group, estimate)
            yield replace(row, baseline=subject.baseline, config={**row.config, "seeds": [subject.backbone.seed]})
