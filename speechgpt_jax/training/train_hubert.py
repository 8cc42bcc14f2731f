"""Trains a HuBERT to predict a teacher's features, or clusters of them.

Gin recipes configure `train` (gin/runs/hubert_*.gin, tools/train_hubert.py).
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from speechgpt_jax import checkpoints, sharding
from speechgpt_jax.checkpoints import Checkpoints, Keep
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_memory, check_number
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.speech2unit import load_hubert, save_hubert
from speechgpt_jax.speech.encoder.targets import load_targets
from speechgpt_jax.speech.encoder.training import Distillation, HubertBatches, MaskedPrediction
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.progress import check_run_folder
from speechgpt_jax.training.train_step import TrainState


def train(
    *,
    targets: str | os.PathLike,
    output_dir: str | os.PathLike,
    model: HubertConfig,
    objective: Distillation | MaskedPrediction,
    optimizer: AdamW,
    steps: int,
    batch_size: int,
    crop_seconds: float,
    distorted: bool,
    max_speed: float,
    start_from: str | os.PathLike | None = None,
    start_share: float = 0.0,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
    save_every: int = 200,
    seed: int = 0,
) -> None:
    """Trains a HuBERT and writes it, without its heads, to `output_dir`/hubert in float16.

    Resumes from the newest checkpoint of `output_dir` if there is one.

    Args:
      targets: folder of clips and targets, as tools.hubert_targets writes it.
      output_dir: gets checkpoints/, metrics.jsonl and hubert/.
      model: sizes of the HuBERT; units are made from the output of its layer `feature_layer`.
      objective: the loss and the heads that it needs.
      optimizer: AdamW; its schedule ends at `steps`.
      steps: number of optimizer steps.
      batch_size: crops per batch.
      crop_seconds: length of a crop in seconds.
      distorted: simulates another room and microphone for each crop.
      max_speed: each crop is played at a random speed in [1 / max_speed, max_speed], which changes
        pitch and formants too; 1: as it is.
      start_from: folder of a trained HuBERT of the same sizes, whose parameters the run starts
        from; None: random parameters.
      start_share: share of the parameters of `start_from` in the written HuBERT, the mean of both:
        it keeps more of what the start did well (Wortsman et al. 2021, arXiv 2109.01903).
      mesh: number of devices along the axes data, fsdp, context and model.
      save_every: steps from one checkpoint to the next.
      seed: seed of the initial parameters, the crops and the masks.

    Raises:
      UserError: a value is out of range; targets or `start_from` don't fit `model`.
    """
    check_number("train_hubert.train.steps", steps, at_least=1)
    check_number("train_hubert.train.batch_size", batch_size, at_least=1)
    check_number("train_hubert.train.crop_seconds", crop_seconds, above=0)
    check_number("train_hubert.train.max_speed", max_speed, at_least=1)
    check_number("train_hubert.train.save_every", save_every, at_least=1)
    check_number("train_hubert.train.start_share", start_share, at_least=0, at_most=1)
    check_number("train_hubert.train.seed", seed, at_least=0, below=2**32)
    check_run_folder(output_dir)
    if start_share and not start_from:
        raise UserError(f"start_share {start_share} needs start_from, a HuBERT to average with.")
    if not model.num_frames(round(crop_seconds * SAMPLE_RATE)):
        raise UserError(
            f"crop_seconds {crop_seconds} is shorter than a frame of the model (25 ms)."
        )
    samples = batch_size * round(crop_seconds * SAMPLE_RATE)
    check_memory(
        "train_hubert.train.batch_size", batch_size, samples * np.dtype("float32").itemsize
    )
    clips, clip_targets = load_targets(targets)
    start = nnx.state(load_hubert(start_from)) if start_from else None
    devices = sharding.create_mesh(mesh)

    def make_learner():
        return objective.learner(model, clip_targets, nnx.Rngs(seed))

    graphdef, _, constants = nnx.split(make_learner(), nnx.Param, ...)
    params = sharding.create_sharded(lambda: nnx.state(make_learner(), nnx.Param), devices)
    if start:
        params["hubert"] = placed_like(params["hubert"], start)
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
                clips,
                clip_targets,
                model,
                rows=batch_size,
                crop_seconds=crop_seconds,
                distorted=distorted,
                max_speed=max_speed,
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
    trained = state.params
    if start:
        trained["hubert"] = mean_of(trained["hubert"], start, start_share)
    learner = nnx.merge(graphdef, trained, constants)
    save_hubert(f"{output_dir}/hubert", learner.hubert, np.float16)
    print(f"The trained HuBERT is in {output_dir}/hubert.")


def placed_like(params: nnx.State, start: nnx.State) -> nnx.State:
    """The arrays of `start`, each with the sharding of its counterpart in `params`.

    Raises:
      UserError: names or shapes differ.
    """
    targets, arrays = checkpoints.flatten(params), checkpoints.flatten(start)
    wanted, got = ({(name, x.shape) for name, x in tree.items()} for tree in (targets, arrays))
    if wanted != got:
        differences = sorted(wanted ^ got)[:4]
        raise UserError(
            f"start_from has other sizes than the run's model: they differ in {differences}."
            " Give a HuBERT that was trained with the same model."
        )
    placed = {name: jax.device_put(x, targets[name].sharding) for name, x in arrays.items()}
    return checkpoints.unflatten(params, placed)


def mean_of(params: nnx.State, start: nnx.State, start_share: float) -> nnx.State:
    """(1 - start_share) * params + start_share * start."""
    return jax.tree.map(
        lambda x, y: (1 - start_share) * x + start_share * jax.device_put(y, x.sharding),
        params,
        start,
    )


def make_train_step(
    graphdef: nnx.GraphDef,
    constants: nnx.State,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, Any]]]:
    """(state, batch) -> (state, metrics), to be jitted."""

    def loss_fn(params, batch, key):
        loss, metrics = nnx.merge(graphdef, params, constants).loss(batch, key)
        return loss, {"loss": loss, **metrics}

    def train_step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics |= {"seconds": batch["lengths"].sum() / SAMPLE_RATE}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
