"""Training of the language model: one stage, from its start to its last checkpoint.

    train(
        model=LlamaConfig.tiny(tokenizer.vocab_size),
        tokenizer=tokenizer,
        batches=load_host_batches("demo_modality_adaptation", batch_size=8, sequence_length=256),
        optimizer=AdamW(learning_rate=1e-3),
        steps=400,
        output_dir="runs/stage1",
    )

The next stage names this one's folder as `start_from`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import jax
from etils import epath

from speechgpt_jax import sharding
from speechgpt_jax.checkpoints import Checkpoints, Keep, read_metadata
from speechgpt_jax.errors import UserError
from speechgpt_jax.models.llama import LlamaConfig
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.training import utilization
from speechgpt_jax.training.loop import Batches, fit
from speechgpt_jax.training.optimizer import AdamW, Guard
from speechgpt_jax.training.progress import draw_losses, say
from speechgpt_jax.training.stage import Stage, jit_train_step, prepare_parameters, split
from speechgpt_jax.training.start import initial_parameters, number_of_tokens
from speechgpt_jax.training.train_step import TrainState


def train(
    *,
    model: LlamaConfig,
    tokenizer: Tokenizer,
    batches: Batches,
    optimizer: AdamW,
    steps: int,
    output_dir: str,
    start_from: str | None = None,
    trainable: str = "all",
    frozen_dtype: str = "float32",
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
    accumulation: int = 1,
    loss_chunk: int = 512,
    guard: Guard | None = None,
    keep: Keep = Keep(),  # noqa: B008 (frozen)
    save_every: int = 1000,
    log_every: int = 10,
    profile_steps: tuple[int, int] | None = None,
    seed: int = 0,
    config_text: Callable[[], str] = lambda: "",
) -> TrainState:
    """Trains a LLaMA; goes on where it was if `output_dir` holds a checkpoint.

    Args:
      model: its shape; with `lora` set, adapters are part of it.
      tokenizer: saved with the run; names the unit tokens.
      batches: this process's rows of each batch, SeqIO's decoder_* keys.
      optimizer: its schedule ends at `steps`.
      steps: number of optimizer steps.
      output_dir: gets checkpoints/, metrics.jsonl, TensorBoard events, loss.png, config.gin and
        tokenizer/.
      start_from: a run, or one of its checkpoints, whose parameters are the start.
      trainable: "all", "embeddings" or "lora"; the rest is frozen and not saved again.
      frozen_dtype: "float32", or "int8" to hold the projections under adapters in a quarter of the
        memory.
      mesh: how many devices along data, fsdp and model.
      accumulation: microbatches a step, to save memory.
      loss_chunk: positions whose logits exist at a time.
      guard: which batches are rejected; without it, a loss that is not finite stops the run.
      keep: which checkpoints stay.
      save_every, log_every: in steps.
      profile_steps: first and last step of a jax.profiler trace, written to profile/.
      seed: of the initial parameters and of dropout.
      config_text: gives the text saved as config.gin.

    Raises:
      UserError: the arguments, the tokenizer and the checkpoints don't fit one another.
    """
    stage = Stage(
        model=model,
        optimizer=optimizer,
        steps=steps,
        trainable=trainable,
        frozen_dtype=frozen_dtype,
        accumulation=accumulation,
        loss_chunk=loss_chunk,
        guard=guard,
        seed=seed,
    )
    _check(model, tokenizer, start_from, trainable)
    devices = sharding.create_mesh(mesh)
    parameters = initial_parameters(model, devices, start_from=start_from, seed=seed)
    parameters = prepare_parameters(stage, parameters, devices)
    state, frozen = split(stage, parameters, devices)
    del parameters
    step = jit_train_step(stage, state, devices, tokenizer.unit_ids)

    metadata = {"config": config_text(), "model": dataclasses.asdict(model)}
    metadata |= _kept_fields(start_from)
    _describe(output_dir, tokenizer, metadata["config"])
    base = start_from if trainable != "all" else None
    with (
        sharding.use_mesh(devices),
        contextlib.closing(Checkpoints(output_dir, keep, metadata, base)) as checkpoints,
    ):
        state = fit(
            state,
            lambda state, batch: step(state, frozen, batch),
            batches,
            steps=steps,
            checkpoints=checkpoints,
            output_dir=output_dir,
            place_batch=functools.partial(sharding.place_batch, mesh=devices),
            save_every=save_every,
            log_every=log_every,
            patience=guard.patience if guard else 0,
            profile_steps=profile_steps,
            peak_flops=utilization.peak_flops(devices.devices.flat),
            name=epath.Path(output_dir).name,
        )
    _say_where_to_go_next(output_dir)
    return state


def _check(model, tokenizer, start_from, trainable):
    """UserError if the arguments of `train` don't fit one another."""
    if model.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"the model has vocab_size {model.vocab_size} and the tokenizer"
            f" {tokenizer.vocab_size} tokens: set the model's to {tokenizer.vocab_size}."
        )
    if trainable != "all" and start_from is None:
        raise UserError(
            f"trainable {trainable!r} trains a part of a model: start_from must name the run or the"
            " checkpoint that has the rest."
        )
    if trainable == "lora" and model.lora is None:
        raise UserError("trainable 'lora' needs a model with lora set.")
    if trainable == "lora" and number_of_tokens(start_from) < model.vocab_size:
        raise UserError(
            f"the model has {model.vocab_size} tokens and {start_from} only"
            f" {number_of_tokens(start_from)}: a frozen base never learns new ones."
        )


def _kept_fields(start_from: str | None) -> dict:
    """Fields of the Hugging Face files that the first of all runs was converted from, if it was."""
    saved = read_metadata(start_from) if start_from else {}
    return {"hugging_face": saved["hugging_face"]} if "hugging_face" in saved else {}


def _describe(output_dir, tokenizer, config_text):
    if jax.process_index() == 0:
        folder = epath.Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.gin").write_text(config_text)
        tokenizer.save_pretrained(folder / "tokenizer")


def _say_where_to_go_next(output_dir):
    if jax.process_index() == 0:
        draw_losses([output_dir], epath.Path(output_dir) / "loss.png")
    say(f"Checkpoints, metrics and loss.png are in {output_dir}.")
    say(f"Curves:      tensorboard --logdir={output_dir}")
    say(f"Next stage:  --gin.train.start_from={output_dir}")
