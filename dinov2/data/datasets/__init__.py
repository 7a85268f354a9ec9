"""Data sets that are built in, and the base class for one's own."""

from dinov2.data.datasets.extended import ExtendedVisionDataset
from dinov2.data.datasets.image_folder import ImageFolder

__all__ = ["ExtendedVisionDataset", "ImageFolder"]
