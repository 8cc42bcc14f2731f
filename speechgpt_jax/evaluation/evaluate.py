"""Decodes the examples of a split and scores the answers with the metrics of their SeqIO tasks."""

import difflib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
from etils import epath

from speechgpt_jax import checkpoints, prompts
from speechgpt_jax.decoding.conversation import build_llama
from speechgpt_jax.decoding.engine import Engine, Request
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation.metrics import with_intervals
from speechgpt_jax.files import read_json, write_text
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.tokenizer import Tokenizer

Metrics = dict[str, dict[str, float]]  # task -> metric -> value


def evaluate_run(
    run: str | os.PathLike,
    *,
    tasks: Sequence[str],
    split: str = "test",
    num_examples: int | None = None,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
) -> Metrics:
    """Evaluates the newest checkpoint of a training run; adds the metrics to its evaluation.json.

    Args:
      run: the folder that `train` wrote.
      tasks: names of SeqIO tasks or mixtures.
      split: e.g. "test".
      num_examples: number of examples per task, the first ones; by default all.
      batch_size: number of prompts that are decoded at the same time.
      sampling: how answers are drawn.

    Raises:
      UserError: a task or its split is unknown, or the run can't be loaded.
    """
    if not tasks:
        raise UserError("Got no tasks; name at least one SeqIO task or mixture.")
    check_number("batch_size", batch_size, at_least=1)
    check_number("num_examples", 1 if num_examples is None else num_examples, at_least=1)
    for task in tasks:
        check_task(task, split)
    tokenizer = Tokenizer.from_pretrained(epath.Path(run) / "tokenizer")
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
    _save(epath.Path(run) / "evaluation.json", split, metrics)
    return metrics


def check_task(name: str, split: str) -> None:
    """Raises a UserError unless `name` is a task or mixture with metrics and with this split."""
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}."
        raise UserError(f"task {name!r} is unknown; {hint}")
    tasks = seqio.get_subtasks(seqio.get_mixture_or_task(name))
    scored = [task for task in tasks if task.metric_fns]
    if not scored:
        raise UserError(f"{name} has no metrics; evaluate a task that has metrics.")
    splits = sorted({split for task in scored for split in task.splits})
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")


def evaluate(
    model: Llama,
    tokenizer: Tokenizer,
    task: str,
    split: str,
    *,
    num_examples: int | None = None,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
) -> Metrics:
    """Scores a SeqIO task, or each task of a mixture that has metrics and this split.

    The model reads everything up to `[SpeechGPT]:` and writes the answer.
    """
    check_task(task, split)
    evaluator = seqio.Evaluator(
        task,
        seqio.PrefixLMFeatureConverter(pack=False),
        eval_split=split,
        num_examples=num_examples,
        async_compute_metrics=False,
    )

    def predict(dataset):
        numbered = list(dataset.as_numpy_iterator())
        if not numbered:
            raise UserError(f"Split {split!r} of {task!r} has no examples; name another split.")
        indices, examples = zip(*numbered)
        references = [split_reference(tokenizer, example) for example in examples]
        answers = _generate_all(model, tokenizer, references, batch_size, sampling)
        return list(zip(indices, answers))

    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    return metrics.result()


def split_reference(
    tokenizer: Tokenizer, features: Mapping[str, np.ndarray]
) -> tuple[list[int], list[int]]:
    """SeqIO's decoder features -> token ids of the prompt, with bos, and the answer, with eos."""
    # SeqIO pads with zeros, and 0 may also be the id of a token.
    tokens: list[int] = np.trim_zeros(features["decoder_target_tokens"], "b").tolist()
    roles = np.flatnonzero(np.equal(tokens, tokenizer.token_to_id(prompts.SPEECHGPT)))
    start = int(roles[-1]) + 1 + len(tokenizer.encode(":"))
    return [*tokenizer.encode_prompt(""), *tokens[:start]], tokens[start:]


def _generate_all(model, tokenizer, references, batch_size, sampling) -> np.ndarray:
    """Token ids of the answers, int32 [N, T], in the order of `references`, padded with eos."""
    # Answers longer than 1.5 times the longest reference are wrong anyway.
    longest = int(1.5 * max(len(answer) for _, answer in references))
    requests = [
        Request(prompt, longest, stop_ids=tokenizer.stop_ids, sampling=sampling, seed=seed)
        for seed, (prompt, _) in enumerate(references)
    ]
    context = longest + max(len(prompt) for prompt, _ in references)
    engine = Engine(model, num_slots=min(batch_size, len(requests)), context=context)
    answers = np.full((len(references), longest + 1), tokenizer.eos_id, np.int32)
    for row, answer in zip(answers, engine.generate(requests), strict=True):
        row[: len(answer)] = answer
    return answers


def _save(path: epath.Path, split: str, metrics: Metrics) -> None:
    saved = read_json(path) if path.exists() else {}
    saved.setdefault(split, {}).update(metrics)
    write_text(path, json.dumps(saved, indent=2) + "\n")


def table(metrics: Metrics) -> str:
    """Metrics as text, one line each, with their 95 % intervals."""
    rows = [
        (task, name, text)
        for task, figures in metrics.items()
        for name, text in with_intervals(figures).items()
    ]
    width = max(len(task) for task, _, _ in rows)
    return "\n".join(f"{task:<{width}}  {name:<36} {text}" for task, name, text in rows)
