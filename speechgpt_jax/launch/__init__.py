"""Launchers of training and decoding on clusters: GKE, SLURM, TPU VM."""
