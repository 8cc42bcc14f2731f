"""Decodes the examples of a split and scores what was said, by the metrics of their SeqIO tasks."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import seqio

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.decoding.conversation import build_llama
from speechgpt_jax.decoding.generate import generate
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import Tokenizer

Metrics = dict[str, dict[str, float]]  # task -> name -> figure


def evaluate_run(
    run: str | os.PathLike,
    *,
    tasks: Sequence[str],
    split: str = "test",
    num_examples: int | None = None,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
) -> Metrics:
    """Evaluates the newest checkpoint of a training run and adds to its evaluation.json.

    Args:
      run: the folder that `train` wrote.
      tasks: names of SeqIO tasks or mixtures.
      split: e.g. "test".
      num_examples: so many of each task's first examples; all by default.
      batch_size: prompts decoded at once.
      sampling: how answers are drawn.
    """
    tokenizer = Tokenizer.from_pretrained(Path(run) / "tokenizer")
    model = checkpoints.load_model(run, build_llama)
    metrics: Metrics = {}
    for task in tasks:
        metrics |= evaluate(
            model,
            tokenizer,
            task,
            split,
            num_examples=num_examples,
            batch_size=batch_size,
            sampling=sampling,
        )
    _save(Path(run) / "evaluation.json", split, metrics)
    return metrics


def evaluate(
    model,
    tokenizer: Tokenizer,
    task: str,
    split: str,
    *,
    num_examples: int | None = None,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
) -> Metrics:
    """Scores a SeqIO task, or each task of a mixture that has metrics and this split.

    The model, a Llama, gets everything up to `[SpeechGPT]:` and goes on from there.
    """
    evaluator = seqio.Evaluator(
        task,
        seqio.PrefixLMFeatureConverter(pack=False, bos_id=tokenizer.bos_id),
        eval_split=split,
        num_examples=num_examples,
        async_compute_metrics=False,
    )
    if not evaluator.eval_tasks:
        raise UserError(f"{task} has no metrics or no split {split!r}.")

    def predict(dataset):
        indices, examples = zip(*dataset.as_numpy_iterator())
        references = [split_reference(tokenizer, example) for example in examples]
        answers = _generate_all(model, tokenizer, references, batch_size, sampling)
        return list(zip(indices, answers))

    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    return metrics.result()


def split_reference(tokenizer: Tokenizer, features) -> tuple[list[int], list[int]]:
    """SeqIO's decoder features -> prompt, with bos, and reference answer, with eos."""
    tokens = features["decoder_target_tokens"]
    tokens = tokens[tokens != tokenizer.pad_id].tolist()
    roles = np.flatnonzero(np.equal(tokens, tokenizer.token_to_id(prompts.SPEECHGPT)))
    start = int(roles[-1]) + 1 + len(tokenizer.encode(":"))
    return [tokenizer.bos_id, *tokens[:start]], tokens[start:]


def _generate_all(model, tokenizer, references, batch_size, sampling) -> np.ndarray:
    """Answers [N, T] in the order of `references`, each closed by eos."""
    # Half as much again as the longest reference is room enough; who needs more has lost the way.
    room = int(1.5 * max(len(answer) for _, answer in references))
    answers = np.full((len(references), room + 1), tokenizer.eos_id, np.int32)
    for rows in _batches_by_length([len(prompt) for prompt, _ in references], batch_size):
        tokens, lengths = generate(
            model,
            [references[row][0] for row in rows],
            max_new_tokens=room,
            stop_ids=[tokenizer.eos_id],
            sampling=sampling,
        )
        for row, answer, length in zip(rows, tokens, lengths):
            answers[row, :length] = answer[:length]
    return answers


def _batches_by_length(lengths: list[int], batch_size: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of one size; the last may repeat a row rather than compile anew."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield np.resize(order[start : start + batch_size], batch_size)


def _save(path: Path, split: str, metrics: Metrics) -> None:
    saved = json.loads(path.read_text()) if path.exists() else {}
    saved.setdefault(split, {}).update(metrics)
    path.write_text(json.dumps(saved, indent=2) + "\n")


def table(metrics: Metrics) -> str:
    """One line a figure."""
    rows = [(task, name, value) for task, row in metrics.items() for name, value in row.items()]
    width = max(len(task) for task, _, _ in rows)
    return "\n".join(f"{task:<{width}}  {name:<36} {value:8.3f}" for task, name, value in rows)
