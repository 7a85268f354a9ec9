"""The segmentation of one data set by several backbones and decoders, beside untrained networks and the truth on the patch grid.

`vetdino segment` calls `run_segmentation`. Rows go to results.jsonl like those of the suite: level "image", and of slices also
level "volume" (their stack, in 3-D); group "all" (mean over classes) or one class, protocol "segment_<decoder>"; kind
"difference" is paired over the same resamples of patients.
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
from vet_extensions.evaluation.segmentation.judging import Keep, judge, scored_units
from vet_extensions.evaluation.segmentation.losses import build_loss
from vet_extensions.evaluation.segmentation.metrics import EMPTY_CLASS_POLICY
from vet_extensions.evaluation.segmentation.saving import mask_writer, write_listing
from vet_extensions.evaluation.segmentation.scores import SCORES, CaseScores
from vet_extensions.evaluation.segmentation.sets import SegmentationSet
from vet_extensions.evaluation.segmentation.training import Fitted, SegmentationConfig, check_sizes, fit, predict
from vet_extensions.evaluation.statistics import LabelSamples, PatientBootstrap, macro_difference, macro_estimate

PATCH_GRID_TRUTH = "patch_grid_truth"
FITS_FOLDER, MASKS_FOLDER = "decoders", "masks"

Found = dict[str, dict[str, Measured]]
"""Level -> score -> its measurement on the test cases."""


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
    has_masks: bool = False,
    on_progress: OnProgress | None = None,
    device: str | torch.device = "cpu",
) -> list[Result]:
    """Train every decoder on every backbone, score the test cases once, append to out_dir/results.jsonl, return the rows.

    specs: what `backbones.open_backbone` takes. has_control: also the same networks with random weights, and the difference to
    them. has_masks: also write what was predicted for the test cases, see `saving`, under out_dir/masks. on_progress counts
    epochs. Finished fits are kept under out_dir/decoders and not repeated; an interrupted one goes on. A score that no test case
    defines is NaN, never 0. Raises `UserError` before anything is trained where it can.
    """
    out_dir = Path(out_dir)
    build_loss(config.loss)  # lets an absent monai speak first
    subjects = _subjects(specs, has_control=has_control)
    for subject in subjects:
        check_sizes(subject.backbone, config)
    n_epochs, n_done = len(subjects) * len(config.decoders) * len(config.learning_rates) * config.epochs, 0

    def count() -> None:
        nonlocal n_done
        n_done += 1
        if on_progress is not None:
            on_progress(n_done, n_epochs)

    ruler = _Ruler(data, config)
    rows: list[Result] = []
    for grid in dict.fromkeys(_grid(subject.backbone, config) for subject in subjects):
        found = ruler.measure(_patch_grid_truths(data, config, grid=grid), {"patch_grid": list(grid)})
        rows += _score_rows(PATCH_GRID_TRUTH, "segment_patch_grid", found, config)
    if has_masks:
        write_listing(out_dir / MASKS_FOLDER, data)
    for decoder in config.decoders:
        of_arm: dict[str, Found] = {}
        for subject in subjects:
            fits = out_dir / FITS_FOLDER
            fitted = fit(subject.backbone, data, config, decoder=decoder, folder=fits, device=device, on_epoch=count)
            keep = mask_writer(out_dir / MASKS_FOLDER, data, decoder=decoder, arm=subject.arm) if has_masks else None
            of_arm[subject.arm] = ruler.measure(_judge(fitted, data, config, keep), _facts(fitted, subject, config))
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


class _Ruler:
    """Makes measurements of scores, with the same resamples of the test patients for all of them."""

    def __init__(self, data: SegmentationSet, config: SegmentationConfig) -> None:
        self._units = scored_units(data)
        codes = self._units["image"].patient_codes
        self._bootstrap = PatientBootstrap(codes, n_resamples=config.bootstrap.n_resamples, seed=config.bootstrap.seed)
        self._class_names = data.class_names[1:]
        cases = "images" if data.volumes is None else "slices"
        self._shared = {
            "data": data.content_hash,
            "data_name": data.name,
            "policy": {**data.policy, "empty_class": EMPTY_CLASS_POLICY},
            "leak": "unknown: the masks have no manifest to compare the pre-training data with",
            "selection": f"learning rate and epoch by mean case-wise Dice of the validation {cases}",
            **{
                key: value
                for key, value in asdict(config).items()
                if key not in ("decoders", "image_size_px", "bootstrap")
            },
            **{f"bootstrap_{key}": value for key, value in asdict(config.bootstrap).items()},
        }

    def measure(self, scores: dict[str, CaseScores], facts: dict[str, Any]) -> Found:
        """The scores of `judge` with intervals over patients. facts: what else belongs on the rows."""
        found: Found = {}
        for level, units in self._units.items():
            n_without = int(np.isnan(units.spacing_mm).any(axis=1).sum())
            shared = {**self._shared, "n_cases_without_spacing": n_without, **facts}
            n, n_patients = len(units.patient_codes), len(np.unique(units.patient_codes))
            samples = scores[level].samples(self._bootstrap, patient_codes=units.patient_codes)
            found[level] = {
                name: Measured(samples[name], self._class_names, n, n_patients, {}, shared) for name in SCORES
            }
        return found


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
    data: SegmentationSet, config: SegmentationConfig, *, grid: tuple[int, int]
) -> dict[str, CaseScores]:
    def drawn(row: int) -> NDArray[np.int64]:
        truth = data.checked_mask(row, shape=data.read(row).shape)
        return patch_grid_truth(truth, image_size_px=grid[0], patch_size=grid[1], n_classes=len(data.class_names))

    return judge(drawn, data, tolerance_mm=config.tolerance_mm)


def _judge(
    fitted: Fitted, data: SegmentationSet, config: SegmentationConfig, keep: Keep | None
) -> dict[str, CaseScores]:
    def found(row: int) -> NDArray[np.int64]:
        return predict(fitted.segmenter, data.read(row), config)

    return judge(found, data, tolerance_mm=config.tolerance_mm, keep=keep)


def _facts(fitted: Fitted, subject: _Subject, config: SegmentationConfig) -> dict[str, Any]:
    return {
        "learning_rate": fitted.learning_rate,
        "epoch": fitted.epoch,
        "val_case_dice": fitted.val_dice,
        "n_decoder_parameters": count_parameters(fitted.segmenter.decoder),
        "n_tuned_parameters": count_parameters(fitted.segmenter),
        "image_size_px": config.image_size_px or subject.backbone.image_size_px,
    }


def _groups(measured: Measured) -> Iterator[tuple[str, Measured, LabelSamples]]:
    """All classes together, then each."""
    yield "all", measured, measured.samples
    for column, name in enumerate(measured.labels):
        yield name, replace(measured, labels=(name,)), measured.samples.select([column])


def _score_rows(arm: str, protocol: str, found: Found, config: SegmentationConfig) -> Iterator[Result]:
    for level, of_level in found.items():
        for metric, measured in of_level.items():
            for group, of_group, samples in _groups(measured):
                estimate = macro_estimate(samples, confidence=config.bootstrap.confidence)
                yield result_row("score", arm, (level, group, protocol, metric), of_group, estimate)


def _difference_rows(
    subject: _Subject, protocol: str, of_arm: dict[str, Found], config: SegmentationConfig
) -> Iterator[Result]:
    assert subject.baseline is not None, "only arms with a baseline are compared"
    for level, of_level in of_arm[subject.arm].items():
        for metric, measured in of_level.items():
            others = {group: samples for group, _, samples in _groups(of_arm[subject.baseline][level][metric])}
            for group, of_group, samples in _groups(measured):
                estimate = macro_difference(samples, others[group], confidence=config.bootstrap.confidence)
                row = result_row("difference", subject.arm, (level, group, protocol, metric), of_group, estimate)
                yield replace(row, baseline=subject.baseline, config={**row.config, "seeds": [subject.backbone.seed]})
