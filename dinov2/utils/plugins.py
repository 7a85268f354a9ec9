"""Loading the modules that a configuration names under `plugins:`; called once by `dinov2.utils.config.setup`."""

import importlib
from collections.abc import Sequence

from dinov2.utils.errors import UserError


def load_plugins(names: Sequence[str]) -> None:
    """Import each module and call its `register()`; a plugin may be loaded twice without harm.

    Raises `UserError` when a module cannot be found or offers no `register`.
    """
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and not name.startswith(error.name):
                raise  # the plugin exists, but something that it imports does not
            raise UserError(
                f"The plugin module '{name}' (configuration key 'plugins') cannot be imported: {error}. "
                "Install it, or put its folder on PYTHONPATH."
            ) from error
        register = getattr(module, "register", None)
        if not callable(register):
            raise UserError(f"The plugin module '{name}' has no function register(); see docs/extending.md.")
        register()
