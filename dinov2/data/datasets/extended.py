"""The base class of image data sets: a subclass says where the bytes and the target of an index are, and how many there are."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from dinov2.data.datasets.decoders import ImageDataDecoder, TargetDecoder


class StandardTransform:
    """One transform for the image and one for the target, applied to the pair."""

    def __init__(
        self,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.transform = transform
        self.target_transform = target_transform

    def __call__(self, image: Any, target: Any) -> tuple[Any, Any]:
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target


class ExtendedVisionDataset(Dataset):
    """A data set of encoded images: decodes, then applies the transforms to (image, target).

    Attributes, as in torchvision's `VisionDataset`: `root`, `transform`, `target_transform`, and `transforms`, which takes
    the pair. Additive: `shortest_side_px`, see `ImageDataDecoder`.
    """

    shortest_side_px = 0

    def __init__(
        self,
        root: Any = None,
        transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        """transforms: takes the pair; transform, target_transform: take one of the two. Either the first or the latter two."""
        has_separate = transform is not None or target_transform is not None
        if transforms is not None and has_separate:
            raise ValueError(
                "Both 'transforms' and 'transform' or 'target_transform' were given; pass either the one that takes "
                "(image, target), or those that take one of them."
            )
        self.root = root
        self.transform = transform
        self.target_transform = target_transform
        self.transforms = StandardTransform(transform, target_transform) if has_separate else transforms

    def get_image_data(self, index: int) -> bytes:
        """The encoded image at `index`."""
        raise NotImplementedError

    def get_target(self, index: int) -> Any:
        """The target at `index`."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """(image, target) after the transforms; raises `RuntimeError` when the image cannot be read or decoded."""
        try:
            encoded = self.get_image_data(index)
            image = ImageDataDecoder(encoded, shortest_side_px=self.shortest_side_px).decode()
        except Exception as error:  # decoders fail in as many ways as there are broken files
            raise RuntimeError(f"can not read image for sample {index}") from error
        target = TargetDecoder(self.get_target(index)).decode()
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target

    def __len__(self) -> int:
        raise NotImplementedError
