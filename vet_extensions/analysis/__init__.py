"""Pictures and pages about what a backbone learned: attention, patch components, training curves, the report."""
