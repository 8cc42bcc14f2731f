"""Decodes the examples of a split and scores the answers with the metrics of their SeqIO tasks."""

import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import seqio
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from speechgpt_jax import prompts
from speechgpt_jax.data import registry
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.loading import load_llama
from speechgpt_jax.decoding.masks import Masks
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation import examples
from speechgpt_jax.evaluation.examples import split_prompt
from speechgpt_jax.evaluation.metrics import with_intervals
from speechgpt_jax.files import read_json, write_text
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import DType
from speechgpt_jax.tokenizer import Tokenizer

Metrics = dict[str, dict[str, float]]  # task -> metric -> value
EVALUATION = "evaluation.json"

# Prompts and right answers, as token ids.
References = Sequence[tuple[list[int], list[int]]]
# References and the forms of their answers, or None -> answers, int32 [N, T], padded with eos.
Generate = Callable[[References, Sequence[str] | None], np.ndarray]
# Targets and predictions -> figures, as of SeqIO's tasks.
MetricFunction = Callable[
    [Sequence[prompts.Response], Sequence[prompts.Response]], dict[str, float]
]


def evaluate_run(
    run: str | os.PathLike,
    *,
    tasks: Sequence[str],
    split: str = "test",
    num_examples: int | None = None,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
    forced: bool = False,
    more_metrics: Sequence[MetricFunction] = (),
    output_dir: str | os.PathLike | None = None,
    devices: int | None = None,
    dtype: DType | None = None,
) -> Metrics:
    """Evaluates the newest checkpoint of a training run, with all processes if there are several.

    Args:
      run: the folder that `train` wrote.
      tasks: names of SeqIO tasks or mixtures.
      split: e.g. "test".
      num_examples: number of examples per task, the first ones; by default all.
      batch_size: number of prompts that are decoded at the same time.
      sampling: how answers are drawn.
      forced: answers are forced into the form of the target, as those of chat and server are.
      more_metrics: metrics besides those of the tasks.
      output_dir: folder to whose evaluation.json the metrics are added; None: nowhere.
      devices: number of each process's devices over which the model is sharded; None: it is on the
        first one.
      dtype: dtype of weights and activations; by default that of `decoding_dtype`.

    Raises:
      UserError: a task or its split is unknown, a task has another template than the run, or the
        run can't be loaded.
    """
    if not tasks:
        raise UserError("Got no tasks; name at least one SeqIO task or mixture.")
    check_number("batch_size", batch_size, at_least=1)
    check_number("num_examples", 1 if num_examples is None else num_examples, at_least=1)
    for task in tasks:
        check_task(task, split)
    if output_dir:
        read_saved(output_dir)
    tokenizer = Tokenizer.from_pretrained(epath.Path(run) / "tokenizer")
    for task in tasks:
        examples.check_template(tokenizer, task)
    model, mesh = load_llama(run, devices, dtype)
    metrics: Metrics = {}
    for task in tasks:
        task_metrics = evaluate(
            model,
            tokenizer,
            task,
            split,
            num_examples=num_examples,
            forced=forced,
            more_metrics=more_metrics,
            batch_size=batch_size,
            sampling=sampling,
            dtype=dtype,
            mesh=mesh,
        )
        metrics |= task_metrics
        if output_dir and jax.process_index() == 0:  # At once: the next task may take long.
            save(output_dir, f"{split}, forced" if forced else split, task_metrics)
    return metrics


def check_task(name: str, split: str) -> None:
    """Raises a UserError unless `name` is a task or mixture with metrics and with this split."""
    tasks = seqio.get_subtasks(registry.find(name))
    scored = [task for task in tasks if task.metric_fns]
    if not scored:
        raise UserError(f"{name} has no metrics; evaluate a task that has metrics.")
    registry.check_split(name, scored, split)


def evaluate(
    model: Llama,
    tokenizer: Tokenizer,
    task: str,
    split: str,
    *,
    num_examples: int | None = None,
    forced: bool = False,
    more_metrics: Sequence[MetricFunction] = (),
    **kwargs: Any,
) -> Metrics:
    """Scores a SeqIO task, or each task of a mixture that has metrics and this split.

    Arguments are those of `evaluate_run`, with a loaded `model` instead of `run`, and as kwargs
    those of `generate_all`.

    Raises:
      UserError: the task or its split is unknown, empty or in another template.
    """
    scorer = Scorer(tokenizer, task, split, num_examples, forced=forced)
    generate = functools.partial(generate_all, model, tokenizer, **kwargs)
    return scorer.score(generate, more_metrics)


class Scorer:
    """The examples of a SeqIO task, or of the tasks of a mixture, and the metrics of answers.

    The model reads everything up to `[SpeechGPT]:` or its template's mark and writes the answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: str,
        split: str,
        num_examples: int | None = None,
        *,
        forced: bool = False,
    ):
        """Reads the examples; arguments are those of `evaluate_run`.

        Raises:
          UserError: the task or its split is unknown or in another template.
        """
        check_task(task, split)
        examples.check_template(tokenizer, task)
        self._tokenizer, self._task, self._split = tokenizer, task, split
        self._forced = forced
        self._evaluator = seqio.Evaluator(
            task,
            seqio.PrefixLMFeatureConverter(pack=False),
            eval_split=split,
            num_examples=num_examples,
            async_compute_metrics=False,
        )

    def score(self, generate: Generate, more_metrics: Sequence[MetricFunction] = ()) -> Metrics:
        """The metrics of the answers that `generate` returns.

        Raises:
          UserError: the split is empty, or has nothing that a metric compares.
        """
        responses: list[tuple[list[list[int]], np.ndarray]] = []  # Per task: targets, predictions.

        def predict(dataset):
            numbered = list(dataset.as_numpy_iterator())
            if not numbered:
                raise UserError(
                    f"Split {self._split!r} of {self._task!r} has no examples; name another split."
                )
            indices, decoded = zip(*numbered)
            references = [
                split_prompt(self._tokenizer, row["decoder_target_tokens"]) for row in decoded
            ]
            targets = [[*prompt, *answer] for prompt, answer in references]
            forms = None
            if self._forced:
                forms = [form_of(x) for x in self._parsed(len(responses), targets)]
            answers = generate(references, forms)
            responses.append((targets, answers))
            return list(zip(indices, answers))

        try:
            computed, _ = self._evaluator.evaluate(compute_metrics=True, predict_fn=predict)
        except ValueError as error:  # SeqIO wraps what a metric raises.
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        metrics = computed.result()
        for number, scored in enumerate(self._evaluator.eval_tasks if more_metrics else ()):
            targets, predictions = (self._parsed(number, rows) for rows in responses[number])
            for metric in more_metrics:
                metrics[scored.name] |= metric(targets, predictions)
        return metrics

    def metric_names(self) -> list[str]:
        """Names of the metrics, "demo_asr/wer" and so on, found with the right answers.

        Raises:
          UserError: see `score`.
        """
        metrics = self.score(
            lambda references, _: _padded([answer for _, answer in references], self._tokenizer)
        )
        return [f"{task}/{name}" for task, figures in metrics.items() for name in figures]

    def _parsed(self, number: int, rows: Iterable[Sequence[int]]) -> list[prompts.Response]:
        """Rows of token ids as the responses of a task, by its number."""
        task = self._evaluator.eval_tasks[number]
        decode = task.output_features["targets"].vocabulary.decode
        return [task.postprocess_fn(decode([int(token) for token in row])) for row in rows]


def evaluate_answers(rows: Sequence[dict], more_metrics: Sequence[MetricFunction] = ()) -> Metrics:
    """Scores the answers that `infer --prompts_task` wrote, on any number of hosts.

    Args:
      rows: rows of all shards.
      more_metrics: metrics besides those of the tasks.

    Raises:
      UserError: these are answers to other prompts, or a task is unknown.
    """
    pairs: dict[str, list[tuple[prompts.Response, prompts.Response]]] = {}
    if not rows:
        raise UserError("There are no answers; expected those of infer --prompts_task.")
    for row in rows:
        if "task" not in row:
            raise UserError("The answers are to no task; expected those of infer --prompts_task.")
        texts = [row.get(name) for name in ("task", "prompt", "target")]
        if not all(isinstance(x, str) for x in texts) or not isinstance(row.get("answer"), dict):
            raise UserError(
                "expected in each row of answers task, prompt and target as texts, and an answer"
                f" {{transcript, text, units}}, got {str(row)[:200]}."
            )
        task = registry.find(row["task"])
        if not task.metric_fns:
            raise UserError(f"{row['task']} has no metrics; evaluate a task that has metrics.")
        target = task.postprocess_fn(row["prompt"] + row["target"])
        answer = row["answer"]
        prediction = prompts.Response(
            answer.get("transcript", ""), answer.get("text", ""), answer.get("units", [])
        )
        pairs.setdefault(row["task"], []).append((target, prediction))
    metrics: Metrics = {}
    for task, task_pairs in pairs.items():
        targets, predictions = zip(*task_pairs)
        metrics[task] = {}
        for metric in (*registry.find(task).metric_fns, *more_metrics):
            metrics[task] |= metric(targets, predictions)
    return metrics


def form_of(response: prompts.Response) -> str:
    """The form of an answer, one of masks.FORMS."""
    if response.units:
        if response.question:
            return "speech_to_speech"
        return "text_to_speech" if response.text else "units"
    return "speech_to_text" if response.question else "text"


def generate_all(
    model: Llama,
    tokenizer: Tokenizer,
    references: References,
    forms: Sequence[str] | None,
    *,
    batch_size: int = 16,
    sampling: Sampling = GREEDY,
    dtype: DType | None = None,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Token ids of the answers, int32 [N, T], in the order of `references`, padded with eos.

    If there are several processes, all call it together: each answers its share of the prompts with
    its own model, and all get all answers.

    Args:
      model: the model.
      tokenizer: its tokenizer.
      references: prompts and right answers.
      forms: form of each answer, one of masks.FORMS, into which it is forced; None: no form.
      batch_size, sampling, dtype: see `evaluate_run`.
      mesh: the mesh of `model`.
    """
    masks = Masks(tokenizer) if forms else None
    states = [masks.start(form) for form in forms] if masks and forms else [0] * len(references)
    # Answers longer than 1.5 times the longest reference are wrong anyway.
    longest = int(1.5 * max(len(answer) for _, answer in references))
    requests = [
        Request(
            prompt,
            longest,
            stop_ids=tokenizer.stop_ids,
            sampling=sampling,
            seed=seed,
            state=state,
        )
        for seed, ((prompt, _), state) in enumerate(zip(references, states, strict=True))
    ]
    engine = Engine(
        model,
        num_slots=min(batch_size, len(requests)),
        context=longest + max(len(prompt) for prompt, _ in references),
        dtype=dtype,
        masks=masks.table if masks else None,
        mesh=mesh,
    )
    own = slice(jax.process_index(), None, jax.process_count())
    answers = np.full((len(references), longest + 1), tokenizer.eos_id, np.int32)
    answers[own] = _padded(engine.generate(requests[own]), tokenizer, longest + 1)
    if jax.process_count() == 1:
        return answers
    of_all = multihost_utils.process_allgather(answers)  # [processes, N, T]
    rows = np.arange(len(references))
    return of_all[rows % jax.process_count(), rows]


def _padded(
    answers: Sequence[Sequence[int]], tokenizer: Tokenizer, length: int | None = None
) -> np.ndarray:
    """Answers as int32 [N, length], padded with eos; by default as long as the longest."""
    length = max(map(len, answers)) if length is None else length
    rows = np.full((len(answers), length), tokenizer.eos_id, np.int32)
    for row, answer in zip(rows, answers, strict=True):
        row[: len(answer)] = answer
    return rows


def save(folder: str | os.PathLike, split: str, metrics: Metrics) -> None:
    """Adds the metrics of a split to evaluation.json in `folder`."""
    saved = read_saved(folder)
    saved.setdefault(split, {}).update(metrics)
    write_text(epath.Path(folder) / EVALUATION, json.dumps(saved, indent=2) + "\n")


def read_saved(folder: str | os.PathLike) -> dict[str, Metrics]:
    """The metrics of all splits in evaluation.json in `folder`; {} if there is no such file.

    Raises:
      UserError: the file is something else.
    """
    path = epath.Path(folder) / EVALUATION
    saved = read_json(path) if path.exists() else {}
    if not all(isinstance(metrics, dict) for metrics in saved.values()):
        raise UserError(f"{path} has no metrics by split; remove it or name another folder.")
    return saved


def table(metrics: Metrics) -> str:
    """Metrics as text, one line each, with their 95 % intervals."""
    rows = [
        (task, name, text)
        for task, figures in metrics.items()
        for name, text in with_intervals(figures).items()
    ]
    width = max(len(task) for task, _, _ in rows)
    return "\n".join(f"{task:<{width}}  {name:<36} {text}" for task, name, text in rows)
