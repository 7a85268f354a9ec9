"""Making data sets from their strings, and loaders with the sampler that a run asks for; called by training and evaluations."""

import inspect
import logging
import re
import signal
from collections.abc import Callable
from difflib import get_close_matches
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from dinov2 import distributed
from dinov2.data.datasets.extended import StandardTransform
from dinov2.data.registry import DATASETS, DatasetFactory
from dinov2.data.samplers import EpochSampler, InfiniteSampler, SeededInfiniteSampler, ShardedInfiniteSampler
from dinov2.utils.errors import UserError
from dinov2.utils.stop import warning_signal

logger = logging.getLogger("dinov2")

_GRAMMAR = "Name:key=value:key=value"
_KEY = re.compile(r":(?=[A-Za-z_]\w*=)")
_NOT_FROM_TEXT = ("transform", "target_transform", "transforms")


class SamplerType(Enum):
    """Which sampler a loader uses; the first five are official, `SEEDED_INFINITE` is the one for exact resumption."""

    DISTRIBUTED = 0
    EPOCH = 1
    INFINITE = 2
    SHARDED_INFINITE = 3
    SHARDED_INFINITE_NEW = 4
    SEEDED_INFINITE = 5


def make_dataset(
    *,
    dataset_str: str,
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
) -> Any:
    """The data set that a string such as `ImageFolder:root=FOLDER:split=train` names.

    The first part is a name in `dinov2.data.registry.DATASETS`, the rest are keyword arguments of its factory. A part begins only
    at a colon that is followed by `word=`, so values may hold colons and equal signs (`root=s3://bucket/a=b`, `root=C:\\data`);
    what a value cannot hold is `:word=` itself. Raises `UserError` for an unknown name or key, and for a missing key.
    """
    factory, kwargs = _parse_dataset_str(dataset_str)
    dataset = factory(transform=transform, target_transform=target_transform, **kwargs)
    logger.info(f'data set "{dataset_str.partition(":")[0]}": {len(dataset):,d} samples')
    # Data sets that aggregate others may not offer these, which official code reads.
    for name, value in (("transform", transform), ("target_transform", target_transform)):
        if not hasattr(dataset, name):
            setattr(dataset, name, value)
    return dataset


def make_data_loader(
    *,
    dataset: Any,
    batch_size: int,
    num_workers: int,
    shuffle: bool = True,
    seed: int = 0,
    sampler_type: SamplerType | None = SamplerType.INFINITE,
    sampler_size: int = -1,
    sampler_advance: int = 0,
    drop_last: bool = True,
    persistent_workers: bool = False,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    sampler_advance_by_rank: bool = False,
) -> DataLoader:
    """A loader of `dataset`.

    shuffle: has no effect with `sampler_type=None`, which goes through the data set once in order, as official.
    sampler_size: indices per epoch, only for EPOCH; not positive means the size of the data set.
    sampler_advance: indices of this rank to skip, not for DISTRIBUTED and EPOCH.
    sampler_advance_by_rank: make that true of the sharded samplers too, which by default count as `ShardedInfiniteSampler` says.

    The loader seeds its workers from `seed`, the rank and `sampler_advance`, and leaves torch's global generator alone: else
    making a loader would change every draw of the run that follows.
    """
    sampler = _make_sampler(
        dataset=dataset,
        type=sampler_type,
        shuffle=shuffle,
        seed=seed,
        size=sampler_size,
        advance=sampler_advance,
        advance_by_rank=sampler_advance_by_rank,
    )
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        drop_last=drop_last,
        persistent_workers=persistent_workers and num_workers > 0,
        collate_fn=collate_fn,
        generator=_worker_seed_generator(seed, sampler_advance),
        worker_init_fn=_init_worker,
    )
    try:
        logger.info(f"data loader: {len(loader):,d} batches")
    except TypeError:  # an infinite sampler has no length
        logger.info("data loader: infinite")
    return loader


def _make_bool_str(b: bool) -> str:
    return "yes" if b else "no"


def _make_sample_transform(
    image_transform: Callable[[Any], Any] | None = None, target_transform: Callable[[Any], Any] | None = None
) -> Callable[[tuple[Any, Any]], tuple[Any, Any]]:
    """A transform of (image, target) samples that workers of any start method can receive."""
    return _SampleTransform(StandardTransform(image_transform, target_transform))


class _SampleTransform:
    def __init__(self, transforms: StandardTransform) -> None:
        self._transforms = transforms

    def __call__(self, sample: tuple[Any, Any]) -> tuple[Any, Any]:
        image, target = sample
        return self._transforms(image, target)


def _parse_dataset_str(dataset_str: str) -> tuple[DatasetFactory, dict[str, str]]:
    """(factory, keyword arguments) of a data set string; see `make_dataset` for the grammar."""
    name, *parts = _KEY.split(dataset_str)
    name, colon, rest = name.partition(":")
    if colon:
        raise UserError(f"Data set '{name}': cannot read ':{rest}' as key=value. A data set is written {_GRAMMAR}.")
    factory = DATASETS.get(name)
    allowed, required = _keys_of(factory)
    kwargs: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"Data set '{name}' has no key '{key}'.{guess} Keys: {', '.join(allowed) or 'none'}.")
        if key in kwargs:
            raise UserError(f"Data set '{name}': the key '{key}' is given twice. Give it once.")
        if not value:
            raise UserError(f"Data set '{name}': the key '{key}' has no value. Give one, or leave the key away.")
        kwargs[key] = value
    missing = [key for key in required if key not in kwargs]
    if missing:
        raise UserError(
            f"Data set '{name}' needs the key '{missing[0]}': {name}:{missing[0]}=... Keys: {', '.join(allowed)}."
        )
    return factory, kwargs


def _keys_of(factory: DatasetFactory) -> tuple[list[str], list[str]]:
    """The keys that a string may set on a factory, and those among them that it must set."""
    parameters = [
        parameter
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in _NOT_FROM_TEXT
    ]
    return [p.name for p in parameters], [p.name for p in parameters if p.default is p.empty]


def _make_sampler(
    *,
    dataset: Any,
    type: SamplerType | None = None,
    shuffle: bool = False,
    seed: int = 0,
    size: int = -1,
    advance: int = 0,
    advance_by_rank: bool = False,
) -> Sampler | None:
    """The sampler of a type over `dataset`; None for torch's own order."""
    if type is None:
        return None
    if type is not SamplerType.EPOCH and size > 0:
        raise UserError(f"sampler_size={size} is only for the sampler EPOCH, not for {type.name}; leave it away.")
    if type is SamplerType.EPOCH and advance > 0:
        raise NotImplementedError(f"sampler_advance={advance}: the sampler EPOCH cannot start in the middle.")
    if type is SamplerType.DISTRIBUTED and advance > 0:
        raise UserError(f"sampler_advance={advance} is not for the sampler DISTRIBUTED; use an infinite one.")

    sample_count = len(dataset)
    logger.info(f"sampler: {type.name.lower()}, shuffled: {_make_bool_str(shuffle)}")
    match type:
        case SamplerType.DISTRIBUTED:
            return torch.utils.data.DistributedSampler(
                dataset,
                num_replicas=distributed.get_global_size(),
                rank=distributed.get_global_rank(),
                shuffle=shuffle,
                seed=seed,
                drop_last=False,
            )
        case SamplerType.EPOCH:
            epoch_size = size if size > 0 else sample_count
            return EpochSampler(size=epoch_size, sample_count=sample_count, shuffle=shuffle, seed=seed)
        case SamplerType.INFINITE:
            return InfiniteSampler(sample_count=sample_count, shuffle=shuffle, seed=seed, advance=advance)
        case SamplerType.SEEDED_INFINITE:
            return SeededInfiniteSampler(sample_count=sample_count, shuffle=shuffle, seed=seed, advance=advance)
        case _:
            return ShardedInfiniteSampler(
                sample_count=sample_count,
                shuffle=shuffle,
                seed=seed,
                advance=advance,
                use_new_shuffle_tensor_slice=type is SamplerType.SHARDED_INFINITE_NEW,
                advance_by_rank=advance_by_rank,
            )


def _worker_seed_generator(seed: int, advance: int) -> torch.Generator:
    """Each rank, and each resumption of a run, gives its workers seeds of their own."""
    entropy = np.random.SeedSequence((seed, distributed.get_global_rank(), advance))
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def _init_worker(worker_id: int) -> None:
    """One thread a worker, deaf to the signals that ask the *main* process to save and stop: a scheduler sends them to all.

    It still goes with its parent, for which torch's workers look every few seconds.
    """
    torch.set_num_threads(1)
    for number in {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, warning_signal()}:
        signal.signal(number, signal.SIG_IGN)
