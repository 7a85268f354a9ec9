"""DINOv2 self-supervised training, written anew with the official names, configuration keys and state-dict keys.

Multi-view studies plug in from outside through three registries (data sets, augmentations, loss routing) and, where the
configuration asks for it, `plugins`; nothing here knows what a study or a radiograph is.
"""

__version__ = "0.0.1"
