"""What is judged (`trained_subjects`), and what it is compared with (`control_subjects`): the same network untrained, the raw
pixels, and a linear oracle for pairs.

The suite scores controls with the same probes, splits and resamples as the backbones. None of them sees a label; what is
fitted (whitening, canonical correlations) is fitted on training images only.

Shape legend: n images, m pairs, d whitened pixel components.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.backbones import PIXELS, open_backbone
from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.feature_set import FeatureSet
from vet_extensions.evaluation.features import OnProgress, short_hash
from vet_extensions.evaluation.store import Features, FeatureStore
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.schema import Split

RANDOM_INIT, RAW_PIXELS, CCA, CCA_SHUFFLED = "random_init", "raw_pixels", "cca", "cca_shuffled"
RAW_COMPONENTS = 64
CCA_COMPONENTS = 32


@dataclass(frozen=True)
class Subject:
    """One thing to be judged: a checkpoint, or a control. architecture: what its random-init control must share, or "".

    compute: its features, with progress in images: those of the archive, and as many again for each further size. backbone: the
    network that they come from, for protocols that train it; None where there is none.
    """

    arm: str
    seed: int | None
    iteration: int | None
    checkpoint_hash: str
    architecture: str
    compute: Callable[[OnProgress], FeatureSet]
    backbone: Backbone | None = None


def trained_subjects(
    specs: Sequence[str | Path],
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    store: FeatureStore,
    device: str | torch.device,
) -> list[Subject]:
    """One subject a backbone, each given as `backbones.open_backbone` takes it: a run folder, a file, hf:FOLDER, ...

    The arm is the backbone's name (of a run, its routing.name), the seed that of its training. A further backbone of the same
    arm and seed is "<arm>#2", ...
    """
    subjects, seen = [], Counter()
    for spec in specs:
        backbone = open_backbone(spec)
        if backbone.name == PIXELS:
            subjects.append(_pixel_subject(RAW_PIXELS, archive, config, store=store))
            continue
        arm = backbone.name
        seen[arm, backbone.seed] += 1
        if seen[arm, backbone.seed] > 1:
            arm = f"{arm}#{seen[arm, backbone.seed]}"
        subjects.append(_backbone_subject(arm, backbone, archive, config, store=store, device=device))
    return subjects


def control_subjects(
    specs: Sequence[str | Path],
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    store: FeatureStore,
    device: str | torch.device,
) -> list[Subject]:
    """The controls that the suite asks for: a random init for each architecture and seed among the backbones, pixels, the oracle.

    Where the backbones differ in architecture or preprocessing, the later random inits are called "random_init#2", ...
    """
    subjects: list[Subject] = []
    if RANDOM_INIT in config.controls:
        wanted: dict[tuple[str, int | None], Backbone] = {}
        for backbone in map(open_backbone, specs):
            if backbone.untrained is not None:
                wanted.setdefault((_comparable(backbone, config), backbone.seed), backbone)
        names = list(dict.fromkeys(architecture for architecture, _ in wanted))
        for (architecture, seed), backbone in sorted(
            wanted.items(), key=lambda item: (names.index(item[0][0]), item[0][1] or 0)
        ):
            place = names.index(architecture)
            arm = RANDOM_INIT if place == 0 else f"{RANDOM_INIT}#{place + 1}"
            assert backbone.untrained is not None
            control = replace(
                backbone.untrained(seed or 0), seed=seed
            )  # of a backbone without a seed it has none either
            subjects.append(_backbone_subject(arm, control, archive, config, store=store, device=device))
    arms = [RAW_PIXELS] * (RAW_PIXELS in config.controls and PIXELS not in map(str, specs))
    arms += [CCA, CCA_SHUFFLED] * (CCA in config.controls)
    return subjects + [_pixel_subject(arm, archive, config, store=store) for arm in arms]


def archive_features(
    backbone: Backbone,
    archive: LabelledImages,
    config: SuiteConfig,
    on_progress: OnProgress | None = None,
    *,
    store: FeatureStore,
    device: str | torch.device,
    rows: NDArray[np.integer] | None = None,
    n_blocks: int = 1,
    with_mean_patch: bool = False,
) -> Features:
    """Features of the images `rows` of the archive (None: all), with what the suite's `tokens` need.

    The preprocessing is the backbone's own but for the suite's image_size_px, which small images as vectors do not follow.
    """
    return store.features(
        backbone,
        archive.reader,
        content_hash=archive.content_hash,
        n_blocks=n_blocks,
        with_mean_patch=with_mean_patch or config.tokens == "cls+mean_patch",
        rows=rows,
        image_size_px=_size_px(backbone, config),
        batch_size=config.batch_size,
        device=device,
        on_progress=on_progress,
    )


def feature_set(
    backbone: Backbone,
    archive: LabelledImages,
    config: SuiteConfig,
    on_progress: OnProgress,
    *,
    store: FeatureStore,
    device: str | torch.device,
) -> FeatureSet:
    """All features of a backbone that the suite's protocols ask for; other sizes are embedded when they are."""
    get = partial(archive_features, backbone, archive, store=store, device=device)
    has_blocks = "linear_grid" in config.protocols and backbone.patch_size is not None
    n_blocks = min(config.linear_grid.n_blocks, backbone.n_blocks) if has_blocks else 1
    features = get(config, on_progress, n_blocks=n_blocks, with_mean_patch=has_blocks)
    n_images, sizes_px = len(archive.cohort.split), config.resolution.sizes_px

    def at_size(size_px: int) -> tuple[NDArray[np.floating], int]:
        used_px, before = _tiled(size_px, backbone), (1 + sizes_px.index(size_px)) * n_images
        other = replace(config, image_size_px=used_px)
        found = get(other, lambda done, _: on_progress(before + done, (1 + len(sizes_px)) * n_images))
        return found.vectors(config.tokens), used_px

    return FeatureSet(
        vectors=features.vectors(config.tokens),
        cls_by_block=features.cls if has_blocks else None,
        mean_patch=features.mean_patch if has_blocks else None,
        at_size=at_size,
    )


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

    vectors: [n, p], small images; each family is whitened by itself on its training images, then the two projections
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


def _tiled(size_px: int, backbone: Backbone) -> int:
    """The side next to size_px that the backbone's patches tile."""
    patch = backbone.patch_size or 1
    return max(1, round(size_px / patch)) * patch


def _size_px(backbone: Backbone, config: SuiteConfig) -> int:
    return backbone.image_size_px if backbone.name == PIXELS else config.image_size_px or backbone.image_size_px


def _comparable(backbone: Backbone, config: SuiteConfig) -> str:
    """A hash of all that shapes an untrained backbone's features: backbones that share it share their random-init control."""
    preprocessing = [_size_px(backbone, config), backbone.mean, backbone.std]
    return short_hash({"architecture": backbone.architecture, "preprocessing": preprocessing})


def _backbone_subject(
    arm: str,
    backbone: Backbone,
    archive: LabelledImages,
    config: SuiteConfig,
    *,
    store: FeatureStore,
    device: str | torch.device,
) -> Subject:
    return Subject(
        arm=arm,
        seed=backbone.seed,
        iteration=backbone.iteration,
        checkpoint_hash=backbone.weights_hash,
        architecture=_comparable(backbone, config),
        compute=partial(feature_set, backbone, archive, config, store=store, device=device),
        backbone=backbone,
    )


def _pixel_subject(arm: str, archive: LabelledImages, config: SuiteConfig, *, store: FeatureStore) -> Subject:
    """Raw pixels, or the oracle on them, by the name of the arm."""

    def compute(on_progress: OnProgress) -> FeatureSet:
        cohort, is_bank = archive.cohort, archive.cohort.split == Split.TRAIN
        plain = replace(config, tokens="cls")
        found = archive_features(open_backbone(PIXELS), archive, plain, on_progress, store=store, device="cpu")
        vectors = found.vectors()
        if arm == RAW_PIXELS:
            return FeatureSet(fit_whitening(vectors[is_bank])(vectors))
        pairs = pair_views(cohort.family, study_codes=cohort.study_codes, is_bank=is_bank)
        pairs = pairs.shuffled(seed=0) if arm == CCA_SHUFFLED else pairs
        return FeatureSet(cca_features(vectors, family=cohort.family, pairs=pairs, is_bank=is_bank))

    return Subject(arm, None, None, "", "", compute)
