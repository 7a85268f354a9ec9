"""The batches of a run: data set, augmentation, masks and loader, put together from the configuration."""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from dinov2 import distributed
from dinov2.data import MaskingGenerator, SamplerType, collate_data_and_cast, make_data_loader, make_dataset
from dinov2.data.adapters import NumberedDataset, PositionSeededDataset
from dinov2.data.registry import build_augmentation
from dinov2.loss.routing import CropLayout
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

SAMPLERS = ("official", "seeded")


class Collate:
    """Collate function of the train loop; picklable, so that loader workers may be spawned.

    With `seed` the masks of a batch derive from (seed, position of its first sample in the run) instead of Python's global
    random state, so that the same run draws the same masks with any number of workers and after a resume.
    """

    def __init__(self, cfg: DictConfig, *, dtype: torch.dtype, seed: int | None) -> None:
        size, patch = cfg.crops.global_crops_size, cfg.student.patch_size
        self._mask_ratio = tuple(cfg.ibot.mask_ratio_min_max)
        self._probability = cfg.ibot.mask_sample_probability
        self._dtype = dtype
        self._seed = seed
        self._n_tokens = (size // patch) ** 2
        self._masks = MaskingGenerator(
            input_size=(size // patch, size // patch),
            max_num_patches=0.5 * size // patch * size // patch,
        )

    def __call__(self, samples: Sequence[tuple[Mapping[str, Any], Any]]) -> dict[str, Any]:
        rng = None
        if self._seed is not None:
            rng = random.Random(f"masks:{self._seed}:{samples[0][0].get('position', 0)}")
        batch = collate_data_and_cast(
            samples,
            self._mask_ratio,
            self._probability,
            dtype=self._dtype,
            n_tokens=self._n_tokens,
            mask_generator=self._masks,
            rng=rng,
        )
        # Behind the official keys: a step that breaks must be able to say what it was made of.
        batch["sample_indices"] = torch.tensor([sample[0]["index"] for sample in samples])
        return batch


def empty_target(_: Any) -> tuple[()]:
    """Self-supervision has no target."""
    return ()


class Batches:
    """An endless iterable of the lists of collated batches that make one step each."""

    def __init__(self, dataset: Any, loader: Iterable[Any], *, per_step: int) -> None:
        self._dataset = dataset
        self._loader = loader
        self._per_step = per_step

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches = iter(self._loader)
        while True:
            yield [next(batches) for _ in range(self._per_step)]

    def describe_sample(self, index: int) -> str:
        """What a user may read of a sample: the data set's `sample_name(index)` where it has one, else the index."""
        name_of = getattr(self._dataset, "sample_name", None)
        return f"{index} ({name_of(index)})" if name_of is not None else str(index)


def make_batches(
    cfg: DictConfig, layout: CropLayout, *, start_iteration: int, dtype: torch.dtype, samples_seen: int = 0
) -> Batches:
    """The batches of a run, beginning with those of `start_iteration`.

    dtype: of crops that leave the augmentation as floats; uint8 crops stay uint8 and are normalised on the device.
    samples_seen: of all processes, before `start_iteration`; where the sampler `seeded` goes on.
    """
    train = cfg.train
    if train.sampler not in SAMPLERS:
        raise UserError(f"train.sampler is '{train.sampler}'. Allowed: {', '.join(SAMPLERS)}.")
    if train.gradient_accumulation_steps < 1:
        raise UserError(f"train.gradient_accumulation_steps is {train.gradient_accumulation_steps}; 1 is the least.")
    _check_crop_sizes(cfg)
    seeded = train.sampler == "seeded"
    augmentation = build_augmentation(cfg, layout)
    plain = make_dataset(dataset_str=train.dataset_path, transform=augmentation, target_transform=empty_target)
    dataset: Any = NumberedDataset(plain)
    if seeded:
        # Augmentations that draw from global random states become a function of (seed, position) too.
        dataset = PositionSeededDataset(dataset, seed=train.seed)
    n_processes = distributed.get_global_size()
    if len(plain) < train.batch_size_per_gpu * n_processes:
        raise UserError(
            f"The data set {train.dataset_path} has {len(plain)} samples, fewer than one batch "
            f"(train.batch_size_per_gpu={train.batch_size_per_gpu}, {n_processes} processes). Lower the batch size or give "
            "more data."
        )
    loader = make_data_loader(
        dataset=dataset,
        batch_size=train.batch_size_per_gpu,
        num_workers=train.num_workers,
        shuffle=True,
        # The official sampler is seeded by the start iteration and never advanced: kept as the default.
        seed=train.seed if seeded else start_iteration,
        sampler_type=SamplerType.SEEDED_INFINITE if seeded else SamplerType.SHARDED_INFINITE,
        sampler_advance=samples_seen // n_processes if seeded else 0,
        drop_last=True,
        collate_fn=Collate(cfg, dtype=dtype, seed=train.seed if seeded else None),
    )
    return Batches(plain, loader, per_step=train.gradient_accumulation_steps)


def _check_crop_sizes(cfg: DictConfig) -> None:
    patch = cfg.student.patch_size
    for name in ("global_crops_size", "local_crops_size"):
        used = name == "global_crops_size" or cfg.crops.local_crops_number > 0
        if used and cfg.crops[name] % patch:
            low = cfg.crops[name] // patch * patch
            raise UserError(
                f"crops.{name} is {cfg.crops[name]}, not a multiple of student.patch_size {patch}. "
                f"Use {max(low, patch)} or {low + patch}."
            )
