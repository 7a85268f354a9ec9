"""What is judged (`trained_subjects`), and what it is compared with (`control_subjects`): the same network untrained, the raw
pixels, and a linear oracle for pairs.

The suite scores controls with the same probes, splits and resamples as the backbones. None of them sees a label; what is
fitted (whitening, canonical correlations) is fitted on training images only.

Shape legend: n images, m pairs, d whitened pixel components.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinov2.eval.run_folder import find_run, iteration_of, preprocessing_of
from dinov2.models import build_model_from_cfg
from dinov2.utils.files import file_sha256
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.features import (
    HASH_DIGITS,
    FeatureCache,
    Features,
    OnProgress,
    PixelsSource,
    embed,
    load_backbone,
    prepare_image,
    short_hash,
)
from vet_extensions.evaluation.results import SuiteConfig
from vet_extensions.schema import Split

RANDOM_INIT, RAW_PIXELS, CCA, CCA_SHUFFLED = "random_init", "raw_pixels", "cca", "cca_shuffled"
RAW_SIDE_PX = 32
RAW_COMPONENTS = 64
CCA_COMPONENTS = 32

_NOT_ARCHITECTURE = ("drop_path_rate", "drop_path_uniform", "pretrained_weights")
"""Keys of the student section that change training but not an untrained network."""


@dataclass(frozen=True)
class Subject:
    """One thing to be judged: a checkpoint, or a control. architecture: what its random-init control must share, or "" ."""

    arm: str
    seed: int | None
    iteration: int | None
    checkpoint_hash: str
    architecture: str
    compute: Callable[[OnProgress], NDArray[np.floating]]


def trained_subjects(
    runs: Sequence[str | Path],
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    cache: FeatureCache | None,
    device: str | torch.device,
) -> list[Subject]:
    """One subject a run folder (its newest checkpoint) or checkpoint file.

    The arm is the run's routing.name, the seed its train.seed; a further checkpoint of the same arm and seed is "<arm>#2", ...
    """
    subjects, seen = [], Counter()
    for run in runs:
        path, run_config = find_run(run)
        arm = str(OmegaConf.select(run_config, "routing.name", default="same_image"))
        seed = int(OmegaConf.select(run_config, "train.seed", default=0))
        seen[arm, seed] += 1
        if seen[arm, seed] > 1:
            arm = f"{arm}#{seen[arm, seed]}"
        subjects.append(
            Subject(
                arm=arm,
                seed=seed,
                iteration=iteration_of(path),
                checkpoint_hash=file_sha256(path)[:HASH_DIGITS],
                architecture=architecture_of(run_config, config),
                compute=partial(embed_checkpoint, path, archive, config, cache=cache, device=device),
            )
        )
    return subjects


def control_subjects(
    runs: Sequence[str | Path],
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    cache: FeatureCache | None,
    device: str | torch.device,
) -> list[Subject]:
    """The controls that the suite asks for: a random init for each architecture and seed among the runs, pixels, the oracle.

    Where the runs differ in architecture or preprocessing, the later random inits are called "random_init#2", ...
    """
    subjects: list[Subject] = []
    if RANDOM_INIT in config.controls:
        wanted: dict[tuple[str, int], DictConfig] = {}
        for run in runs:
            _, run_config = find_run(run)
            seed = int(OmegaConf.select(run_config, "train.seed", default=0))
            wanted.setdefault((architecture_of(run_config, config), seed), run_config)
        names = list(dict.fromkeys(architecture for architecture, _ in wanted))
        for (architecture, seed), run_config in sorted(
            wanted.items(), key=lambda item: (names.index(item[0][0]), item[0][1])
        ):
            place = names.index(architecture)
            key = short_hash({"random_init": architecture, "seed": seed})
            build = partial(random_backbone, run_config, seed=seed)
            compute = partial(_embed_cached, build, key, run_config, archive, config, cache=cache, device=device)
            arm = RANDOM_INIT if place == 0 else f"{RANDOM_INIT}#{place + 1}"
            subjects.append(Subject(arm, seed, None, key, architecture, compute))
    pixel_controls: dict[str, Callable[[OnProgress | None], NDArray[np.floating]]] = {}
    if RAW_PIXELS in config.controls:
        pixel_controls[RAW_PIXELS] = partial(_raw_pixel_control, archive)
    if CCA in config.controls:
        pixel_controls[CCA] = partial(_cca_control, archive, is_shuffled=False)
        pixel_controls[CCA_SHUFFLED] = partial(_cca_control, archive, is_shuffled=True)
    return subjects + [Subject(arm, None, None, "", "", compute) for arm, compute in pixel_controls.items()]


def embed_checkpoint(
    checkpoint: Path,
    archive: LabelledImages,
    config: SuiteConfig,
    on_progress: OnProgress | None = None,
    *,
    cache: FeatureCache | None,
    device: str | torch.device,
    rows: NDArray[np.integer] | None = None,
) -> NDArray[np.float32]:
    """Features [n, D] of a teacher checkpoint for the images `rows` of the archive (None: all), preprocessed as its run was."""
    _, run_config = find_run(checkpoint)
    return _embed_cached(
        lambda: load_backbone(checkpoint)[0], file_sha256(checkpoint)[:HASH_DIGITS], run_config, archive, config, on_progress,
        cache=cache, device=device, rows=rows,
    )  # fmt: skip


def architecture_of(run_config: DictConfig, config: SuiteConfig) -> str:
    """A hash of all that shapes the untrained backbone's features: runs that share it share their random-init control."""
    student = OmegaConf.to_container(run_config.student, resolve=True)
    assert isinstance(student, dict)
    kept = {key: value for key, value in student.items() if key not in _NOT_ARCHITECTURE}
    crop_px = run_config.crops.global_crops_size
    return short_hash({"student": kept, "crop_px": crop_px, "preprocessing": _preprocessing(run_config, config)})


def random_backbone(config: DictConfig, *, seed: int) -> nn.Module:
    """The backbone of a run's config as it is before training, drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone, _ = build_model_from_cfg(config, only_teacher=True)
    return backbone.eval()


def raw_pixels(pixels_source: PixelsSource, *, row_index: NDArray[np.integer]) -> NDArray[np.float32]:
    """Small images as vectors: [n, 32 * 32], area-averaged, each with mean 0 and standard deviation 1."""
    vectors = np.empty((len(row_index), RAW_SIDE_PX**2), dtype=np.float32)
    for place, row in enumerate(row_index):
        vectors[place] = prepare_image(pixels_source.read(int(row)), RAW_SIDE_PX).ravel()
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors / (vectors.std(axis=1, keepdims=True) + 1e-6)


@dataclass(frozen=True)
class Whitening:
    """Principal components scaled to unit variance on the images they were fitted on. mean: [p]; projection: [p, d]."""

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Vectors [n, p] -> [n, d]."""
        return ((vectors - self.mean) @ self.projection).astype(np.float32)


def fit_whitening(vectors: NDArray[np.floating], *, n_components: int = RAW_COMPONENTS) -> Whitening:
    """PCA of vectors [n, p], whitened; keeps fewer components where the images do not span as many."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    eigenvalues, directions = np.linalg.eigh(centred.T @ centred / max(1, len(vectors)))  # ascending
    order = np.argsort(-eigenvalues, kind="stable")[:n_components]
    order = order[eigenvalues[order] > 1e-9 * max(eigenvalues[-1], 1e-30)]
    directions = directions[:, order]
    # An eigenvector's sign is arbitrary: the largest entry is made positive, so that every machine gives the same features.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    return Whitening(mean, directions / np.sqrt(eigenvalues[order]))


def raw_pixel_features(vectors: NDArray[np.floating], *, is_bank: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The raw-pixel control: `raw_pixels` vectors [n, p] whitened on the training images, [n, d]."""
    return fit_whitening(vectors[is_bank])(vectors)


@dataclass(frozen=True)
class PairedViews:
    """Training pairs: rows of one image of each family of the same study, [m] each."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]

    def shuffled(self, seed: int) -> "PairedViews":
        """The same images with every pair broken up (no first keeps its second): the oracle's own control."""
        order = np.random.default_rng(seed).permutation(len(self.first))
        partner = np.empty_like(order)
        partner[order] = np.roll(order, 1)  # one cycle through all pairs
        return PairedViews(self.first, self.second[partner])


def pair_views(
    family: NDArray[np.str_], *, study_codes: NDArray[np.integer], is_bank: NDArray[np.bool_]
) -> PairedViews:
    """The first lateral and the first frontal training image of every study that has both."""
    rows_of = {}
    for name in ("lateral", "frontal"):
        rows = np.flatnonzero(is_bank & (family == name))
        studies, first = np.unique(study_codes[rows], return_index=True)
        rows_of[name] = dict(zip(studies.tolist(), rows[first].tolist(), strict=True))
    shared = sorted(rows_of["lateral"].keys() & rows_of["frontal"].keys())
    return PairedViews(
        *(np.array([rows_of[name][study] for study in shared], dtype=np.intp) for name in ("lateral", "frontal"))
    )


def cca_features(
    vectors: NDArray[np.floating],
    *,
    family: NDArray[np.str_],
    pairs: PairedViews,
    is_bank: NDArray[np.bool_],
    n_components: int = CCA_COMPONENTS,
    ridge: float = 0.1,
) -> NDArray[np.float32]:
    """The linear oracle: what the two views of a study share, by canonical correlation analysis of whitened pixels.

    vectors: [n, p] from `raw_pixels`; each family is whitened by itself on its training images, then the two projections
    that correlate most across `pairs` are found. Each canonical variate is scaled by its correlation, so that shared
    directions count and others fade. Images of other families get zeros.
    returns: [n, n_components]. Source: Hotelling, Biometrika 1936.
    """
    if len(pairs.first) < 2 * RAW_COMPONENTS:
        raise UserError(
            f"The cca control needs {2 * RAW_COMPONENTS} training studies with a lateral and a frontal view, found "
            f"{len(pairs.first)}. Leave 'cca' out of the suite's controls, or use a larger archive."
        )
    whitened = []
    for name in ("lateral", "frontal"):
        rows = family == name
        part = np.zeros((len(vectors), RAW_COMPONENTS), dtype=np.float64)
        components = fit_whitening(vectors[rows & is_bank], n_components=RAW_COMPONENTS)(vectors[rows])
        part[rows, : components.shape[1]] = components
        whitened.append(part)
    first, second = whitened[0][pairs.first], whitened[1][pairs.second]
    root_first, root_second = (_inverse_root(x.T @ x / len(x), ridge=ridge) for x in (first, second))
    left, correlations, right = np.linalg.svd(root_first @ (first.T @ second / len(first)) @ root_second)
    kept = slice(0, n_components)
    projected = whitened[0] @ root_first @ left[:, kept] + whitened[1] @ root_second @ right.T[:, kept]
    return (projected * correlations[kept]).astype(np.float32)


def _inverse_root(covariance: NDArray[np.float64], *, ridge: float) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    return (vectors / np.sqrt(values)) @ vectors.T


def _preprocessing(run_config: DictConfig, config: SuiteConfig) -> dict[str, Any]:
    """What `embed` needs to know, and what the cache must tell apart."""
    mean, std = preprocessing_of(run_config)
    size_px = config.image_size_px or int(run_config.crops.global_crops_size)
    return {"image_size_px": size_px, "mean": mean, "std": std, "tokens": config.tokens}


def _embed_cached(
    build: Callable[[], nn.Module],
    weights_key: str,
    run_config: DictConfig,
    archive: LabelledImages,
    config: SuiteConfig,
    on_progress: OnProgress | None = None,
    *,
    cache: FeatureCache | None,
    device: str | torch.device,
    rows: NDArray[np.integer] | None = None,
) -> NDArray[np.float32]:
    preprocessing = _preprocessing(run_config, config)

    def compute() -> Features:
        return embed(
            build(),
            archive.reader,
            row_index=rows,
            batch_size=config.batch_size,
            device=device,
            on_progress=on_progress,
            **preprocessing,
        )

    if cache is None:
        return compute().cls
    of_rows = "all" if rows is None else short_hash(np.asarray(rows).tolist())
    key = {"weights": weights_key, "manifest": archive.content_hash, "rows": of_rows, **preprocessing}
    return cache.get(key, compute).cls


def _raw_pixel_control(archive: LabelledImages, on_progress: OnProgress | None = None) -> NDArray[np.float32]:
    is_bank = archive.cohort.split == Split.TRAIN
    return raw_pixel_features(_all_raw_pixels(archive, on_progress), is_bank=is_bank)


def _cca_control(
    archive: LabelledImages, on_progress: OnProgress | None = None, *, is_shuffled: bool
) -> NDArray[np.float32]:
    cohort, is_bank = archive.cohort, archive.cohort.split == Split.TRAIN
    pairs = pair_views(cohort.family, study_codes=cohort.study_codes, is_bank=is_bank)
    pairs = pairs.shuffled(seed=0) if is_shuffled else pairs
    vectors = _all_raw_pixels(archive, on_progress)
    return cca_features(vectors, family=cohort.family, pairs=pairs, is_bank=is_bank)


def _all_raw_pixels(archive: LabelledImages, on_progress: OnProgress | None) -> NDArray[np.float32]:
    vectors = raw_pixels(archive.reader, row_index=np.arange(len(archive.cohort.split)))
    if on_progress is not None:
        on_progress(len(vectors), len(vectors))
    return vectors
