"""Flags that the launchers accept, and arguments of a run."""

from pathlib import Path

OUTPUT = "--output_dir=gs://bucket/stage1"
# Checking the values of a recipe takes seconds, because it imports TensorFlow; this file doesn't.
UNITS_GIN = Path(__file__).parent.parent / "testdata" / "units.gin"
TRAIN = [f"--gin_file={UNITS_GIN}", OUTPUT, "--gin.UNITS=gs://bucket/units-*.txt"]
# Files of the image aren't read.
IN_IMAGE = ["--gin_file=/image/run.gin", OUTPUT]
RECIPE = ["--gin_file=gin/runs/llama_7b_stage1.gin", OUTPUT]
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
