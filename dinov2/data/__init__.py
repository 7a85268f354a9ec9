"""Data sets, augmentations, samplers and loaders; importing it also makes the built-in data sets and augmentations known."""

from dinov2.data.adapters import DatasetWithEnumeratedTargets
from dinov2.data.augmentations import DataAugmentationDINO
from dinov2.data.collate import collate_data_and_cast
from dinov2.data.loaders import SamplerType, make_data_loader, make_dataset
from dinov2.data.masking import MaskingGenerator

__all__ = [
    "DataAugmentationDINO",
    "DatasetWithEnumeratedTargets",
    "MaskingGenerator",
    "SamplerType",
    "collate_data_and_cast",
    "make_data_loader",
    "make_dataset",
]
