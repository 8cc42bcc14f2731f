"""Trains a small HuBERT to predict a teacher's clusters.

    python -m tools.hubert_targets --manifest=corpus/manifest.jsonl --output=targets
    python -m tools.train_hubert --targets=targets --output_dir=runs/hubert_tiny --steps=4000
    python -m tools.train_kmeans --hubert=runs/hubert_tiny/hubert --manifest=... --num_clusters=200

Interrupted, the same command goes on where it was. The HuBERT without its classifier ends up in
OUTPUT_DIR/hubert, stored in float16.
"""

import argparse
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from speechgpt_jax.checkpoints import Checkpoints, Keep
from speechgpt_jax.speech.hubert import HubertConfig
from speechgpt_jax.speech.hubert_training import (
    HubertBatches,
    HubertStudent,
    distillation_loss,
)
from speechgpt_jax.speech.speech2unit import load_hubert, save_hubert
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.train_step import TrainState

SIZES = {"tiny": HubertConfig.tiny, "base": HubertConfig.base}


def make_train_step(graphdef, optimizer, centroids: jax.Array):
    """(state, batch) -> (state, metrics), to be jitted."""

    def loss_fn(params, batch):
        return distillation_loss(nnx.merge(graphdef, params), batch, centroids)

    def train_step(state: TrainState, batch):
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics |= {"seconds": batch["lengths"].sum() / 16_000}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def load_targets(folder: pathlib.Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What tools.hubert_targets wrote: clips int16 [S] (memory-mapped), cluster ids int16 [T]."""

    def pieces(name: str, ends: str) -> list[np.ndarray]:
        return np.split(np.load(folder / name, mmap_mode="r"), np.load(folder / ends)[:-1])

    return pieces("sound.npy", "clip_ends.npy"), pieces("targets.npy", "target_ends.npy")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--targets", required=True, type=pathlib.Path)
    parser.add_argument("--output_dir", required=True, type=pathlib.Path)
    parser.add_argument(
        "--start_from", help="folder of a trained HuBERT to go on with"
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=5, help="crops in a batch")
    parser.add_argument("--crop_seconds", type=float, default=2.5)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    clips, targets = load_targets(args.targets)
    centroids = jnp.asarray(np.load(args.targets / "centroids.npy"))
    config = SIZES[args.size]()
    batches = HubertBatches(
        clips, targets, config, rows=args.rows, crop_seconds=args.crop_seconds, seed=args.seed
    )
    model = HubertStudent(config, centroids, rngs=nnx.Rngs(args.seed))
    if args.start_from:
        nnx.update(model.hubert, nnx.state(load_hubert(args.start_from)))
    graphdef, params = nnx.split(model, nnx.Param)
    adamw = AdamW(args.learning_rate, warmup=0.02, b2=0.98, weight_decay=0.01)
    optimizer = make_optimizer(adamw, args.steps)
    metadata = {"model": dataclasses.asdict(config)}
    state = fit(
        TrainState.create(params, optimizer),
        jax.jit(make_train_step(graphdef, optimizer, centroids), donate_argnums=0),
        batches,
        steps=args.steps,
        checkpoints=Checkpoints(args.output_dir, Keep(last=2), metadata),
        output_dir=args.output_dir,
        save_every=200,
        rate="seconds",
        name=f"hubert_{args.size}",
    )
    save_hubert(args.output_dir / "hubert", nnx.merge(graphdef, state.params).hubert, np.float16)
    print(f"The trained HuBERT is in {args.output_dir / 'hubert'}.")


if __name__ == "__main__":
    main()
