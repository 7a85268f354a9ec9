"""Studies for training (pairs of views, and the augmentation that crops both) and for classification (single images).

Registered when the plugin is loaded.
"""

from dinov2.data.registry import AUGMENTATIONS, DATASETS
from vet_extensions.data.paired_augmentation import PairedViewAugmentation, paired_views
from vet_extensions.data.study_dataset import MultiViewStudyDataset, StudySample
from vet_extensions.data.study_images import StudyImages, vet_studies

__all__ = ["MultiViewStudyDataset", "PairedViewAugmentation", "StudyImages", "StudySample", "register"]


def register() -> None:
    """Add the data sets and the augmentation under the names that the configuration takes."""
    DATASETS.register("VetStudies")(vet_studies)
    AUGMENTATIONS.register("paired_views")(paired_views)
