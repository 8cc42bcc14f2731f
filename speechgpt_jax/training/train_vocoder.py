"""Trains a unit vocoder on recordings and their units, with or without discriminators.

Gin recipes configure `train` (gin/runs/vocoder_tiny.gin, tools/train_vocoder.py).
"""

import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_memory, check_number
from speechgpt_jax.local_copies import local_copies
from speechgpt_jax.manifests import check_fields
from speechgpt_jax.speech.vocoder.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    discriminator_loss,
)
from speechgpt_jax.speech.vocoder.training import (
    FIELDS,
    MEL_HOP,
    VocoderBatches,
    VocoderObjective,
    calibrate_durations,
    prepare_rows,
    sound_losses,
    synthesize_segments,
)
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig, load_vocoder
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.progress import check_run_folder, print_once
from speechgpt_jax.training.train_step import TrainState


def train(
    *,
    rows: Sequence[Mapping],
    output_dir: str | os.PathLike,
    model: VocoderConfig,
    objective: VocoderObjective,
    optimizer: AdamW,
    steps: int,
    batch_size: int,
    segment_codes: int,
    discriminators: DiscriminatorConfig | None = None,
    start_from: str | None = None,
    duration_factor: float | None = None,
    save_every: int = 500,
    seed: int = 0,
) -> UnitVocoder:
    """Trains a vocoder and writes it to `output_dir`/vocoder in float16.

    Resumes from the newest checkpoint of `output_dir` if there is one.

    Args:
      rows: recordings, {path, units, durations, speaker}; see `prepare_rows`. Those on gs:// are
        copied to the folder for temporary files while it trains.
      output_dir: gets checkpoints/, metrics.jsonl and vocoder/.
      model: sizes of the vocoder.
      objective: weights of the losses.
      optimizer: AdamW of the vocoder and of the discriminators; its schedule ends at `steps`.
      steps: number of optimizer steps.
      batch_size: segments per batch.
      segment_codes: length of a segment in codes of 20 ms; a multiple of 4 with the default
        `stft_sizes` of the objective.
      discriminators: sizes of HiFi-GAN's discriminators; None: only spectral losses.
      start_from: folder of a trained vocoder of the same sizes, whose parameters the run starts
        from; None: random parameters.
      duration_factor: length of predicted speech relative to the recordings; 1.1 is 10 % slower
        (`calibrate_durations`). None: as it comes from the training.
      save_every: steps from one checkpoint to the next.
      seed: seed of the initial parameters, the segments and dropout.

    Raises:
      UserError: a size is not positive; rows or `start_from` don't fit `model`.
    """
    sizes = {
        "steps": steps,
        "batch_size": batch_size,
        "segment_codes": segment_codes,
        "save_every": save_every,
    }
    for name, size in sizes.items():
        check_number(name, size, at_least=1)
    check_run_folder(output_dir)
    samples = segment_codes * model.code_hop_size
    check_memory("batch_size", batch_size, batch_size * samples * np.dtype(np.float32).itemsize)
    for hop in (MEL_HOP, *(size // 4 for size in objective.stft_sizes)):
        if samples % hop:
            raise UserError(
                f"segment_codes {segment_codes} are {samples} samples, no multiple of {hop}, a hop"
                " of the losses; with the default stft_sizes take a multiple of 4."
            )
    factor = 1.0 if duration_factor is None else duration_factor
    check_number("duration_factor", factor, at_least=0.5, at_most=2)
    check_number("seed", seed, at_least=0, below=2**32)
    check_fields(rows, FIELDS)
    with local_copies(row["path"] for row in rows) as copies:
        prepared = prepare_rows(rows, model, copies)
        if left_out := len(rows) - len(prepared):
            print_once(
                f"{left_out} of {len(rows)} rows are left out: the model lacks their speakers."
            )
        batches = VocoderBatches(
            prepared,
            model,
            batch_size=batch_size,
            segment_codes=segment_codes,
            seed=seed,
        )
        vocoder = (
            load_vocoder(start_from) if start_from else UnitVocoder(model, rngs=nnx.Rngs(seed))
        )
        if vocoder.config != model:
            raise UserError(
                f"start_from {start_from} holds {vocoder.config}, but the run's model is {model}; "
                "give a vocoder of the same sizes."
            )
        models = {"vocoder": vocoder}
        if discriminators:
            models["discriminators"] = Discriminators(discriminators, rngs=nnx.Rngs(seed))
        tx = make_optimizer(optimizer, steps)
        train_step = make_train_step(**models, optimizer=tx, objective=objective, seed=seed)
        state = fit(
            create_state(models, tx),
            jax.jit(train_step, donate_argnums=0),
            batches,
            steps=steps,
            checkpoints=Checkpoints(output_dir),
            output_dir=output_dir,
            save_every=save_every,
            rate="seconds",
            name="vocoder",
        )
        nnx.update(vocoder, state.params["vocoder"])
        if duration_factor is not None:
            calibrate_durations(vocoder, prepared, duration_factor)
        vocoder.save_pretrained(f"{output_dir}/vocoder", np.float16)
    return vocoder


def create_state(
    models: Mapping[str, nnx.Module], optimizer: optax.GradientTransformation
) -> TrainState:
    """State before the first step; `params` and `opt_state` have an entry for each model.

    Args:
      models: "vocoder", and "discriminators" if they are trained too.
      optimizer: optimizer of each model; its state is separate for each.
    """
    params = {name: nnx.state(model, nnx.Param) for name, model in models.items()}
    opt_state = {name: optimizer.init(model_params) for name, model_params in params.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def make_train_step(
    vocoder: UnitVocoder,
    discriminators: Discriminators | None = None,
    *,
    optimizer: optax.GradientTransformation,
    objective: VocoderObjective,
    seed: int,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """train_step(state, batch) -> (state, metrics), to be jitted.

    Discriminators are updated before the vocoder (HiFi-GAN's order). Without them the vocoder is
    trained with the spectral losses only.
    """
    config = vocoder.config
    graph, _ = nnx.split(vocoder, nnx.Param)
    discriminator_graph = None
    if discriminators is not None:
        discriminator_graph, _ = nnx.split(discriminators, nnx.Param)

    def weighted_sum(losses):
        return sum(getattr(objective, name) * loss for name, loss in losses.items())

    def train_step(state, batch):
        params, opt_state, metrics = {}, {}, {}
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def update(name, gradients):
            updates, opt_state[name] = optimizer.update(
                gradients, state.opt_state[name], state.params[name]
            )
            params[name] = optax.apply_updates(state.params[name], updates)

        def generate(vocoder_params):
            model = nnx.merge(graph, vocoder_params)
            wav, losses = synthesize_segments(model, batch, nnx.Rngs(dropout=key))
            return (wav, weighted_sum(losses)), losses

        # Vocoder and discriminators learn from the same wav, which is computed once.
        (wav, _), backward, losses = jax.vjp(generate, state.params["vocoder"], has_aux=True)
        trained_discriminators = None
        if discriminator_graph is not None:

            def discriminate(discriminator_params):
                model = nnx.merge(discriminator_graph, discriminator_params)
                return discriminator_loss(model(batch["wav"]), model(wav))

            metrics["discriminator_loss"], gradients = jax.value_and_grad(discriminate)(
                state.params["discriminators"]
            )
            update("discriminators", gradients)
            trained_discriminators = nnx.merge(discriminator_graph, params["discriminators"])

        def compare(wav):
            wav_losses = sound_losses(
                wav,
                batch["wav"],
                trained_discriminators,
                objective.stft_sizes,
                config.sampling_rate,
            )
            return weighted_sum(wav_losses), wav_losses

        wav_gradient, wav_losses = jax.grad(compare, has_aux=True)(wav)
        (gradients,) = backward((wav_gradient, jnp.ones(())))
        update("vocoder", gradients)
        losses |= wav_losses
        metrics |= {f"{name}_loss": loss for name, loss in losses.items()}
        seconds = batch["mask"].sum() * config.code_hop_size / config.sampling_rate
        metrics |= {"loss": weighted_sum(losses), "seconds": seconds}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
