"""The table of all images of an intake folder: how it is built, split, written, opened and checked."""

from vet_extensions.manifest.io import Manifest, write_manifest

__all__ = ["Manifest", "write_manifest"]
