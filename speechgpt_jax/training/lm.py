"""Trains one stage of the language model, from its initial parameters to its last checkpoint.

    train(
        model=LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=256, ...),
        tokenizer=tokenizer,
        batches=load_host_batches("demo_modality_adaptation", batch_size=8, sequence_length=256),
        optimizer=AdamW(learning_rate=1e-3),
        steps=400,
        output_dir="runs/stage1",
    )

The next stage gets this one's folder as `start_from`.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from etils import epath

from speechgpt_jax import checkpoints, sharding
from speechgpt_jax import xla_options as xla
from speechgpt_jax.checkpoints import Checkpoints, Keep, read_metadata, run_folder
from speechgpt_jax.data import pipeline
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import best_effort, check_writable_folder, write_text
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import SHARDED_SIZES, check_mesh
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.sharding import MeshConfig
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.training import held_out as evaluation
from speechgpt_jax.training import utilization
from speechgpt_jax.training.held_out import AnsweredTasks
from speechgpt_jax.training.inputs import HeldOut
from speechgpt_jax.training.loop import LOG_EVERY, Batches, check_profile_steps, fit
from speechgpt_jax.training.memory import check_activations, out_of_memory
from speechgpt_jax.training.optimizer import AdamW, Guard
from speechgpt_jax.training.phases import Phases
from speechgpt_jax.training.progress import check_run_folder, draw_losses, print_once
from speechgpt_jax.training.stage import (
    Stage,
    jit_evaluation_step,
    jit_train_step,
    merge,
    prepare_parameters,
    split,
)
from speechgpt_jax.training.start import (
    check_heads,
    compare_numerics,
    initial_parameters,
    number_of_tokens,
)
from speechgpt_jax.training.train_step import TrainState
from speechgpt_jax.training.watchdog import Watchdog, watched
from speechgpt_jax.training.weights_and_biases import WandbRun, config_values


def train(
    *,
    model: LlamaConfig,
    tokenizer: Tokenizer,
    batches: Batches,
    optimizer: AdamW,
    steps: int,
    output_dir: str,
    start_from: str | None = None,
    trainable: Literal["all", "embeddings", "lora"] = "all",
    frozen_dtype: Literal["float32", "int8"] = "float32",
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
    accumulation: int = 1,
    loss_columns: int = 8192,
    guard: Guard | None = None,
    xla_options: Mapping[str, xla.Value] | None = None,
    held_out: Sequence[HeldOut] = (),
    answered: AnsweredTasks | None = None,
    evaluate_every: int | None = None,
    keep: Keep = Keep(),  # noqa: B008 (frozen)
    save_every: int = 1000,
    save_minutes: float | None = None,
    log_every: int = LOG_EVERY,
    profile_steps: tuple[int, int] | None = None,
    prometheus_file: str | None = None,
    wandb_project: str | None = None,
    watchdog: Watchdog = Watchdog(),  # noqa: B008 (frozen)
    seed: int = 0,
    config_text: Callable[[], str] = lambda: "",
    phases: Phases | None = None,
) -> TrainState:
    """Trains a LLaMA; resumes from the newest checkpoint if `output_dir` holds one.

    Args:
      model: its sizes; with `lora` set, adapters are part of it.
      tokenizer: saved with the run; knows which tokens are units.
      batches: this process's rows of each batch, with SeqIO's decoder_* keys.
      optimizer: AdamW, whose schedule ends at `steps`.
      steps: number of optimizer steps.
      output_dir: gets checkpoints/, metrics.jsonl, TensorBoard events, loss.png, config.gin and
        tokenizer/.
      start_from: a run, or one of its checkpoints, with the initial parameters.
      trainable: "all", "embeddings" or "lora"; the rest is frozen and not saved again.
      frozen_dtype: "float32", or "int8" to store the projections under adapters in a quarter of
        the memory.
      mesh: number of devices along data, fsdp, context and model.
      accumulation: microbatches per step, to save memory.
      loss_columns: tokens of the vocabulary whose logits are in memory at the same time; the
        backward pass computes them again if there are more.
      guard: rejects bad batches; without it, a loss that is not finite stops the run.
      xla_options: options of XLA's compiler for the steps, on top of those that are set anyway (see
        `speechgpt_jax.xla_options`).
      held_out: splits whose losses are measured on the whole mesh.
      answered: SeqIO tasks whose examples the model answers, scored by the tasks' metrics.
      evaluate_every: steps between two evaluations; the last step is evaluated too.
      keep: which checkpoints stay on disk.
      save_every, log_every: steps from one checkpoint, or line of metrics, to the next.
      save_minutes: minutes after which a checkpoint is saved too, at the next step that is logged.
      profile_steps: first and last step of a jax.profiler trace, written to profile/.
      prometheus_file: gets the newest metrics for Prometheus's node exporter.
      wandb_project: project of Weights & Biases that gets the metrics too.
      watchdog: ends a run that hangs.
      seed: seed of the initial parameters and of dropout.
      config_text: returns the text of config.gin; called once.
      phases: records what the run is doing; given by a caller that watches it already.

    Raises:
      UserError: the arguments, the tokenizer and the checkpoints contradict one another.
    """
    stage = Stage(
        model=model,
        optimizer=optimizer,
        steps=steps,
        trainable=trainable,
        frozen_dtype=frozen_dtype,
        accumulation=accumulation,
        loss_columns=loss_columns,
        guard=guard,
        xla_options=xla_options,
        seed=seed,
    )
    check_number("save_every", save_every, at_least=1)
    check_number("log_every", log_every, at_least=1)
    check_number("evaluate_every", 1 if evaluate_every is None else evaluate_every, at_least=1)
    check_number("save_minutes", 1 if save_minutes is None else save_minutes, above=0)
    check_writable_folder(output_dir)
    check_profile_steps(profile_steps, checkpoints.latest_step(output_dir), steps)
    check(model, tokenizer, start_from, trainable, answered, output_dir)
    _check_resumed(compare_numerics, model, output_dir)
    answers = answered.prepare(tokenizer) if answered else None
    evaluation.check(held_out, answers, evaluate_every, save_every, keep.best)
    is_watched = phases is not None
    phases = phases or Phases()
    with contextlib.nullcontext() if is_watched else watched(phases, watchdog, output_dir):
        devices = sharding.create_mesh(mesh)
        check_mesh(model, devices, SHARDED_SIZES)
        xla.check(xla_options or {}, devices.local_devices[0])
        if isinstance(batches, pipeline.Batches):
            check_activations(model, *batches.shape, accumulation, devices)
        parameters = initial_parameters(model, devices, start_from=start_from, seed=seed)
        parameters = prepare_parameters(stage, parameters, devices)
        state, frozen = split(stage, parameters, devices)
        del parameters
        step = out_of_memory()(jit_train_step(stage, state, devices, tokenizer.unit_ids))
        evaluation_step = jit_evaluation_step(stage, devices, tokenizer.unit_ids)

        def evaluate(state: TrainState) -> dict[str, float]:
            values = evaluation.losses(evaluation_step, state.params, frozen, held_out, devices)
            if answers:
                values |= answers(merge(stage, state.params, frozen))
            evaluation.check_best(keep.best, values)
            return values

        metadata: dict[str, Any] = {"config": config_text(), "model": dataclasses.asdict(model)}
        metadata |= _kept_fields(start_from)
        base = start_from if trainable != "all" else None
        with (
            sharding.use_mesh(devices),
            contextlib.closing(Checkpoints(output_dir, keep, metadata, base)) as saved,
        ):
            state = fit(
                state,
                lambda state, batch: step(state, frozen, batch),
                batches,
                steps=steps,
                checkpoints=saved,
                output_dir=output_dir,
                place_batch=functools.partial(sharding.place_batch, mesh=devices),
                evaluate=evaluate,
                evaluate_every=evaluate_every,
                save_every=save_every,
                save_minutes=save_minutes,
                log_every=log_every,
                patience=guard.patience if guard else 0,
                profile_steps=profile_steps,
                prometheus_file=prometheus_file,
                start_wandb=_wandb_starter(wandb_project, output_dir, metadata),
                peak_flops=utilization.peak_flops(devices.devices.flat),
                name=epath.Path(output_dir).name,
                phases=phases,
                describe=lambda: _describe(output_dir, tokenizer, metadata["config"]),
            )
    _print_next_steps(output_dir)
    return state


def check(
    model: LlamaConfig,
    tokenizer: Tokenizer,
    start_from: str | None,
    trainable: str,
    answered: AnsweredTasks | None,
    output_dir: str,
) -> None:
    """Raises a UserError if these arguments of `train` contradict one another.

    It is fast; `train` does it too.
    """
    check_run_folder(output_dir)
    _check_resumed(check_heads, model, output_dir)
    if start_from is not None:
        checkpoints.latest(start_from)
        _check_other_run(start_from, output_dir)
    if model.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"the model has vocab_size {model.vocab_size} and the tokenizer"
            f" {tokenizer.vocab_size} tokens: set the model's to {tokenizer.vocab_size}."
        )
    if trainable != "all" and start_from is None:
        raise UserError(
            f"trainable {trainable!r} trains a part of a model: start_from must name the run or the"
            " checkpoint with the rest."
        )
    if trainable == "lora" and model.lora is None:
        raise UserError("trainable 'lora' needs a model with adapters: set LlamaConfig.lora.")
    if trainable == "lora" and start_from:
        _check_base(model, start_from)
    if answered:
        answered.check(tokenizer, model)


def _check_resumed(
    compare: Callable[[LlamaConfig, LlamaConfig, str], None], model: LlamaConfig, output_dir: str
) -> None:
    """Calls `compare` if a run is resumed whose newest checkpoint is whole."""
    if checkpoints.latest_step(output_dir) is not None:
        with contextlib.suppress(checkpoints.Damaged):  # An older one is resumed then.
            saved = LlamaConfig.from_metadata(checkpoints.read_metadata(output_dir), output_dir)
            compare(model, saved, output_dir)


def _check_other_run(start_from: str, output_dir: str) -> None:
    """Raises a UserError if a run would start from itself."""
    if checkpoints.latest_step(output_dir) is None:
        return
    if os.path.realpath(run_folder(start_from)) == os.path.realpath(run_folder(output_dir)):
        raise UserError(
            f"start_from {start_from} is the output folder itself, whose run resumes from its"
            " newest checkpoint: leave start_from out, or name the run from which it was started."
        )


def _check_base(model: LlamaConfig, start_from: str) -> None:
    """Raises a UserError if the frozen base and the model have different tokens."""
    num_tokens = number_of_tokens(start_from)
    if num_tokens < model.vocab_size - len(model.new_tokens):
        raise UserError(
            f"the model has {model.vocab_size} tokens and {start_from} only {num_tokens}: a frozen"
            f" base never learns new ones; set LoraConfig.new_tokens_from to {num_tokens}."
        )
    base = dataclasses.replace(model, vocab_size=num_tokens)
    if base.padded_vocab_size != model.padded_vocab_size:
        raise UserError(
            f"the model has {model.vocab_size} tokens and {start_from} {num_tokens}: adapters are"
            " saved without their base, so both need the same vocabulary. Use the tokenizer of"
            f" {start_from}, or train a stage with trainable 'all' in between."
        )


def _kept_fields(start_from: str | None) -> dict:
    """Metadata `hugging_face` of `start_from`, which each run of a converted model passes on."""
    saved = read_metadata(start_from) if start_from else {}
    return {"hugging_face": saved["hugging_face"]} if "hugging_face" in saved else {}


def _wandb_starter(
    project: str | None, output_dir: str, metadata: dict
) -> Callable[[], WandbRun] | None:
    if project is None:
        return None
    config = config_values(metadata["config"]) | {"model": metadata["model"]}
    return functools.partial(WandbRun, project, output_dir, config)


def _describe(output_dir: str, tokenizer: Tokenizer, config_text: str) -> None:
    """Writes config.gin and tokenizer/ into the run's folder."""
    if jax.process_index() == 0:
        folder = epath.Path(output_dir)
        write_text(folder / "config.gin", config_text)
        tokenizer.save_pretrained(folder / "tokenizer")


def _print_next_steps(output_dir: str) -> None:
    """Draws loss.png and prints where the results are and how the next stage starts."""
    if jax.process_index() == 0:
        image = epath.Path(output_dir) / "loss.png"
        with best_effort(image):
            draw_losses([output_dir], image)
    print_once(f"Checkpoints, metrics and loss.png are in {output_dir}.")
    print_once(f"Curves:      tensorboard --logdir={output_dir}")
    print_once(f"Next stage:  --gin.train.start_from={output_dir}")
