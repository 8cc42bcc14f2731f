"""Trains a unit vocoder on recordings and their units.

    python -m tools.train_vocoder --gin_file=gin/runs/vocoder_tiny.gin \\
        --manifest=corpus/units.jsonl --output_dir=runs/vocoder

The manifest has a row {path, units, durations, speaker} a recording, `durations` in codes (20 ms).
Interrupted, the same command goes on where it was. The trained vocoder ends up in
OUTPUT_DIR/vocoder, stored in float16.
"""

import sys

import jax
import numpy as np
from absl import app, flags
from flax import nnx

from speechgpt_jax import gin_utils
from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.files import read_manifest
from speechgpt_jax.host_memory import keep_freed_memory
from speechgpt_jax.speech.vocoder.discriminators import DiscriminatorConfig, Discriminators
from speechgpt_jax.speech.vocoder.training import (
    VocoderBatches,
    VocoderObjective,
    init_state,
    make_train_step,
    prepare_rows,
)
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig, load_vocoder
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.optimizer import AdamW, make_optimizer


def train(
    *,
    rows: list[dict],
    output_dir: str,
    model: VocoderConfig,
    objective: VocoderObjective,
    optimizer: AdamW,
    steps: int,
    batch_size: int,
    segment_codes: int,
    discriminators: DiscriminatorConfig | None = None,
    start_from: str | None = None,
    save_every: int = 500,
    seed: int = 0,
) -> UnitVocoder:
    """Trains a vocoder; goes on where it was if `output_dir` holds a checkpoint.

    Args:
      rows: of a manifest.
      output_dir: gets checkpoints/, metrics.jsonl and vocoder/.
      model: its shape.
      objective: weights of the losses.
      optimizer: of the vocoder, and of the discriminators; its schedule ends at `steps`.
      steps: number of optimizer steps.
      batch_size, segment_codes: segments in a batch and their length in codes (20 ms).
      discriminators: without, the spectral losses alone teach the vocoder.
      start_from: folder of a trained vocoder whose parameters are the start.
      save_every: in steps.
      seed: of the initial parameters, the segments and dropout.
    """
    vocoder = UnitVocoder(model, rngs=nnx.Rngs(seed))
    if start_from:
        vocoder = load_vocoder(start_from)
    if vocoder.config != model:
        raise UserError(f"{start_from} holds {vocoder.config}, but the run's model is {model}.")
    judges = Discriminators(discriminators, rngs=nnx.Rngs(seed)) if discriminators else None
    update = make_optimizer(optimizer, steps)
    train_step = make_train_step(vocoder, judges, update, objective, seed)
    state = fit(
        init_state(vocoder, judges, update),
        jax.jit(train_step, donate_argnums=0),
        VocoderBatches(
            prepare_rows(rows, model),
            model,
            batch_size=batch_size,
            segment_codes=segment_codes,
            seed=seed,
        ),
        steps=steps,
        checkpoints=Checkpoints(output_dir),
        output_dir=output_dir,
        save_every=save_every,
        rate="seconds",
        name="vocoder",
    )
    nnx.update(vocoder, state["vocoder"]["params"])
    vocoder.save_pretrained(f"{output_dir}/vocoder", np.float16)
    print(f"The trained vocoder is in {output_dir}/vocoder.")
    return vocoder


def define_flags():
    flags.DEFINE_string("manifest", None, "JSONL of recordings and their units.", required=True)
    flags.DEFINE_string("split", None, "Train on the manifest's rows of this split only.")
    flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
    gin_utils.define_flags()


def main(bindings: list[str]):
    args = flags.FLAGS
    gin_utils.parse(args.gin_file, bindings, args.gin_search_paths)
    from tools import train_vocoder  # The name that gin files bind, not __main__.

    keep_freed_memory()
    rows = read_manifest(args.manifest, args.split)
    gin_utils.call(train_vocoder.train, rows=rows, output_dir=args.output_dir)


if __name__ == "__main__":
    with one_line_errors():
        argv, bindings = gin_utils.split_arguments(sys.argv)
        define_flags()
        app.run(lambda _: main(bindings), argv)
