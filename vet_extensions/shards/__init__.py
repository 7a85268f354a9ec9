"""Grey images in uncompressed tar files with a byte-offset index: written once by intake, read at random by everything else."""

from vet_extensions.shards.reader import ShardReader
from vet_extensions.shards.writer import ShardWriter

__all__ = ["ShardReader", "ShardWriter"]
