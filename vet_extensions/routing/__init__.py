"""Loss routings for two views of one study; they join the core's registry when the plugin is loaded."""

from dinov2.loss.routing import ROUTERS
from vet_extensions.routing.strategies import CrossOnly, Symmetric, VetDino

__all__ = ["CrossOnly", "Symmetric", "VetDino", "register"]


def register() -> None:
    """Add the routings under the names that `routing.name` takes."""
    ROUTERS.register("vet_dino")(VetDino)
    ROUTERS.register("cross_only")(CrossOnly)
    ROUTERS.register("symmetric")(Symmetric)
