"""From DICOM files to a manifest and shards: the one room that sees identities, and the one that lets none of them out.

`run.run_intake` is what the command line and the demo call, `options` says what can be chosen; docs/intake.md is the manual.
The package itself imports nothing, so that a worker process starts with only what it needs.
"""
