"""Data sets that are built in, and the base class for one's own."""

from dinov2.data.datasets.extended import ExtendedVisionDataset
from dinov2.data.datasets.image_folder import ImageFolder
from dinov2.data.datasets.image_net import ImageNet
from dinov2.data.datasets.image_net_22k import ImageNet22k

__all__ = ["ExtendedVisionDataset", "ImageFolder", "ImageNet", "ImageNet22k"]
