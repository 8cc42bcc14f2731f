"""Orbax checkpoints of a run: the trained arrays, the input position and the configuration.

A run's folder holds `checkpoints/<step>/` with three items: `state` (every array of the train state
under its dotted name), `input` (one compressed file per reader of the data) and `metadata` (JSON).
A step appears under its number only when all of it is on disk, so a killed run leaves no
half-written one.

A run that trains only a part of a model, such as an adapter, saves only that part; its metadata
names the checkpoint of the rest as `base`.

`pack` writes the parameters of a checkpoint into one safetensors file, which every command
accepts in place of a run.
"""

from speechgpt_jax.checkpoints.arrays import flatten, unflatten
from speechgpt_jax.checkpoints.folders import FOLDER, latest_step
from speechgpt_jax.checkpoints.manager import Checkpoints, Keep, Restored
from speechgpt_jax.checkpoints.models import (
    Parameters,
    load_model,
    pack,
    read_metadata,
    save_parameters,
)
from speechgpt_jax.checkpoints.problems import RUNTIME_ERRORS, Damaged, NotSaved, Unreadable
from speechgpt_jax.checkpoints.steps import base_of, latest, run_folder

__all__ = [
    "FOLDER",
    "RUNTIME_ERRORS",
    "Checkpoints",
    "Damaged",
    "Keep",
    "NotSaved",
    "Parameters",
    "Restored",
    "Unreadable",
    "base_of",
    "flatten",
    "latest",
    "latest_step",
    "load_model",
    "pack",
    "read_metadata",
    "run_folder",
    "save_parameters",
    "unflatten",
]
