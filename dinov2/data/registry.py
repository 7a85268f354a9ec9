"""The registries of data sets and of augmentations: seams one and two, through which a plugin adds its own.

`dinov2.data.loaders.make_dataset` looks up the first, the training loop the second through `build_augmentation`. What is built in
registers where it is defined; `import dinov2.data` brings all of it.
"""

from collections.abc import Callable
from typing import Any

from dinov2.utils.registry import Registry

DatasetFactory = Callable[..., Any]
"""Called with `transform`, `target_transform` and the keys of a data set string, all keyword arguments and all text; returns a
map-style data set whose items are (image, target) pairs."""

AugmentationFactory = Callable[[Any, Any], Callable[[Any], dict[str, Any]]]
"""`factory(cfg, layout)` -> augmentation. `cfg` is the whole configuration (OmegaConf). `layout` is the `CropLayout` of the
chosen loss routing: `student_globals`, `student_locals` and `teacher_globals` (tuples that hold the source image of each crop
slot), `n_shared`, `n_sources` and `teacher_is_student`; it is duck-typed here, for the data room does not import the loss room.
The augmentation takes one sample and returns the crop dictionary that `collate_data_and_cast` describes."""

DATASETS: Registry[DatasetFactory] = Registry("data set")
AUGMENTATIONS: Registry[AugmentationFactory] = Registry("augmentation")


def build_augmentation(cfg: Any, layout: Any) -> Callable[[Any], dict[str, Any]]:
    """The augmentation that `augmentation.name` of the configuration names; raises `UserError` for an unknown name."""
    return AUGMENTATIONS.get(cfg.augmentation.name)(cfg, layout)
