"""Launchers of training on clusters: GKE, SLURM, TPU VM."""
