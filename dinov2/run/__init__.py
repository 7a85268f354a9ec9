"""Command lines that hand training and evaluation to SLURM, or to this machine, through submitit."""
