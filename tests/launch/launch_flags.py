"""Flags that the launchers accept, and arguments of a run."""

TRAIN = ["--gin_file=gin/runs/llama_7b_stage1.gin", "--gin.UNITS=gs://bucket/units-*.txt"]
GKE = [
    "--name=stage1",
    "--image=registry/speechgpt_jax",
    "--accelerator=tpu-v5-lite-podslice",
    "--dry_run",
]
SLURM = ["--name=a", "--nodes=4", "--dry_run"]
TPU = ["--name=pod", "--zone=us-west4-a", "--dry_run"]
NEW = ["--accelerator_type=v5litepod-256", "--runtime_version=v2-alpha-tpuv5-lite"]
WATCH = ["watch", "--name=pod", "--zone=z", "--source=url"]
WATCH += ["--accelerator_type=v5litepod-256", "--runtime_version=image"]
