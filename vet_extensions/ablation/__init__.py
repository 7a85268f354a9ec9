"""Ablations: a plan of arms and seeds becomes runs on SLURM or on this machine, and the runs become one table."""
