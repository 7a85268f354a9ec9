"""Verbs that bring several rooms together and that no room may hold by itself. Called by `vet_extensions.cli`."""
