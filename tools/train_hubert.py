"""Trains a HuBERT on the features of another model, or on their clusters.

    python -m tools.hubert_targets --manifest=corpus/manifest.jsonl --output=targets
    python -m tools.whisper_to_hubert hubert_start
    python -m tools.train_hubert --gin_file=gin/runs/hubert_tiny.gin --targets=targets \\
        --start_from=hubert_start --output_dir=runs/hubert_tiny
    python -m tools.train_kmeans --hubert=runs/hubert_tiny/hubert --manifest=... --num_clusters=200

Interrupted, the same command goes on where it was. The HuBERT without its heads ends up in
OUTPUT_DIR/hubert, stored in float16.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from speechgpt_jax import checkpoints, gin_utils, sharding
from speechgpt_jax.checkpoints import Checkpoints, Keep
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.host_memory import keep_freed_memory
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.speech2unit import load_hubert, save_hubert
from speechgpt_jax.speech.encoder.training import Distillation, HubertBatches, MaskedPrediction
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.train_step import TrainState

# Short flags -> what they bind.
SHORT = {
    "start_from": "train_hubert.train.start_from",
    "steps": "train_hubert.train.steps",
    "learning_rate": "optimizer.AdamW.learning_rate",
}


def train(
    *,
    targets: str,
    output_dir: str,
    model: HubertConfig,
    objective: Distillation | MaskedPrediction,
    optimizer: AdamW,
    steps: int,
    batch_size: int,
    crop_seconds: float,
    distorted: bool,
    start_from: str | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
    save_every: int = 200,
    seed: int = 0,
) -> None:
    """Trains a HuBERT; goes on where it was if `output_dir` holds a checkpoint.

    Args:
      targets: folder that tools.hubert_targets wrote.
      output_dir: gets checkpoints/, metrics.jsonl and hubert/.
      model: its shape; `feature_layer` is the layer that units are made of.
      objective: what it learns.
      optimizer: its schedule ends at `steps`.
      steps: number of optimizer steps.
      batch_size, crop_seconds: crops in a batch and their length.
      distorted: whether each crop gets a room and a microphone of its own.
      start_from: folder of a trained HuBERT of the same shape to go on with.
      mesh: how many devices along data, fsdp and model.
      save_every: in steps.
      seed: of the initial parameters, the crops and the gaps.
    """
    folder, devices = pathlib.Path(targets), sharding.create_mesh(mesh)
    frames = np.load(folder / "targets.npy", mmap_mode="r")

    def make_learner():
        return objective.learner(model, frames, nnx.Rngs(seed))

    graphdef, _, constants = nnx.split(make_learner(), nnx.Param, ...)
    params = sharding.create_sharded(lambda: nnx.state(make_learner(), nnx.Param), devices)
    if start_from:
        params["hubert"] = placed_like(params["hubert"], nnx.state(load_hubert(start_from)))
    tx = make_optimizer(optimizer, steps)
    state = sharding.create_sharded(
        functools.partial(TrainState.create, optimizer=tx), devices, params
    )
    step = jax.jit(
        make_train_step(graphdef, constants, tx, seed),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
    )
    with sharding.use_mesh(devices):
        state = fit(
            state,
            step,
            HubertBatches(
                *load_targets(folder),
                model,
                rows=batch_size,
                crop_seconds=crop_seconds,
                distorted=distorted,
                seed=seed,
            ),
            steps=steps,
            checkpoints=Checkpoints(output_dir, Keep(last=2), {"model": dataclasses.asdict(model)}),
            output_dir=output_dir,
            place_batch=functools.partial(sharding.place_batch, mesh=devices),
            save_every=save_every,
            rate="seconds",
            name="hubert",
        )
    learner = nnx.merge(graphdef, state.params, constants)
    save_hubert(pathlib.Path(output_dir) / "hubert", learner.hubert, np.float16)
    print(f"The trained HuBERT is in {output_dir}/hubert.")


def placed_like(params, start):
    """`start`, each array on the devices where that of `params` lies; UserError if they differ."""
    targets, arrays = checkpoints.flatten(params), checkpoints.flatten(start)
    wanted, got = ({(name, x.shape) for name, x in tree.items()} for tree in (targets, arrays))
    if wanted != got:
        wrong = sorted(wanted ^ got)[:4]
        raise UserError(f"start_from is not of the run's shape: they differ in {wrong}.")
    placed = {name: jax.device_put(x, targets[name].sharding) for name, x in arrays.items()}
    return checkpoints.unflatten(params, placed)


def make_train_step(graphdef, constants, optimizer: optax.GradientTransformation, seed: int):
    """(state, batch) -> (state, metrics), to be jitted."""

    def loss_fn(params, batch, key):
        loss, metrics = nnx.merge(graphdef, params, constants).loss(batch, key)
        return loss, {"loss": loss, **metrics}

    def train_step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics |= {"seconds": batch["lengths"].sum() / SAMPLE_RATE}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def load_targets(folder: pathlib.Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What tools.hubert_targets wrote: clips int16 [S], ids [T] or features [T, D] (mapped)."""

    def pieces(name: str, ends: str) -> list[np.ndarray]:
        return np.split(np.load(folder / name, mmap_mode="r"), np.load(folder / ends)[:-1])

    return pieces("sound.npy", "clip_ends.npy"), pieces("targets.npy", "target_ends.npy")


def define_flags():
    flags.DEFINE_string("targets", None, "Folder of tools.hubert_targets.", required=True)
    flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
    for name, binding in SHORT.items():
        flags.DEFINE_string(name, None, f"Short for --gin.{binding}.")
    gin_utils.define_flags()


def main(bindings: list[str]):
    args = flags.FLAGS
    short = [f"--gin.{binding}={args[name].value}" for name, binding in SHORT.items()]
    _, more = gin_utils.split_arguments([flag for flag in short if not flag.endswith("=None")])
    gin_files = args.gin_file or ["gin/runs/hubert_tiny.gin"]
    gin_utils.parse(gin_files, bindings + more, args.gin_search_paths)
    from tools import train_hubert  # The name that gin files bind, not __main__.

    keep_freed_memory()
    gin_utils.call(train_hubert.train, targets=args.targets, output_dir=args.output_dir)


if __name__ == "__main__":
    with one_line_errors():
        argv, bindings = gin_utils.split_arguments(sys.argv)
        define_flags()
        app.run(lambda _: main(bindings), argv)
