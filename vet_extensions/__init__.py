"""Multi-view radiograph studies for DINOv2: intake, paired augmentation, loss routing, evaluation, export.

Importing the package registers nothing. Listing `vet_extensions` under `plugins:` in a training configuration makes
`dinov2.utils.plugins` call `register()`, which adds the data set, the augmentation and the routings to the core's registries.
"""

__version__ = "0.1.0"


def register() -> None:
    """Add this package's data set, augmentation and loss routings to the registries of `dinov2`. Safe to call twice."""
    from vet_extensions import data, routing

    data.register()
    routing.register()
