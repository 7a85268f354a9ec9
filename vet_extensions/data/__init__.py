"""Studies for training: pairs of views, and the augmentation that crops both; registered when the plugin is loaded."""

from dinov2.data.registry import AUGMENTATIONS, DATASETS
from vet_extensions.data.paired_augmentation import PairedViewAugmentation, paired_views
from vet_extensions.data.study_dataset import MultiViewStudyDataset, StudySample

__all__ = ["MultiViewStudyDataset", "PairedViewAugmentation", "StudySample", "register"]


def register() -> None:
    """Add the data set and the augmentation under the names that the configuration takes."""
    DATASETS.register("VetStudies")(MultiViewStudyDataset)
    AUGMENTATIONS.register("paired_views")(paired_views)
