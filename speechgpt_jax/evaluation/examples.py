"""The examples of SeqIO tasks as prompts, and the answers that their records give."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import seqio

from speechgpt_jax.data import registry
from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.errors import UserError
from speechgpt_jax.tokenizer import Tokenizer


class Example(NamedTuple):
    """An example of a task.

    Attributes:
      task: name of the task.
      prompt: token ids of all up to the mark of the answer, with bos.
      answer: token ids of the answer, with eos.
    """

    task: str
    prompt: list[int]
    answer: list[int]


def check_template(tokenizer: Tokenizer, name: str) -> None:
    """Raises a UserError unless a task has dialogues in the template of the run."""
    for task in seqio.get_subtasks(registry.find(name)):
        vocabulary = task.output_features["targets"].vocabulary
        if not isinstance(vocabulary, Vocabulary):
            raise UserError(
                f"task {task.name} has a {type(vocabulary).__name__} of another package, which has"
                " no template of dialogues: register it with data.vocabulary.Vocabulary and the"
                " run's tokenizer."
            )
        theirs = vocabulary.tokenizer.template
        if theirs != tokenizer.template:
            raise UserError(
                f"task {task.name} has the template {theirs.name!r} and the run"
                f" {tokenizer.template.name!r}: give the task the run's tokenizer."
            )


def read(
    tokenizer: Tokenizer, name: str, split: str, num_examples: int | None = None
) -> Iterator[Example]:
    """The examples of a split in their order; of a mixture, those of one task after the other.

    Args:
      tokenizer: that of the model.
      name: a registered task or mixture.
      split: e.g. "test".
      num_examples: number of examples per task, the first ones; by default all.

    Raises:
      UserError: the task or its split is unknown, or it is no task of dialogues in the template of
        the model.
    """
    tasks = seqio.get_subtasks(registry.find(name))
    registry.check_split(name, tasks, split)
    check_template(tokenizer, name)
    for task in tasks:
        if split not in task.splits:
            continue
        dataset = task.get_dataset(None, split, shuffle=False)
        for features in itertools.islice(dataset.as_numpy_iterator(), num_examples):
            tokens = [part for key in ("inputs", "targets") for part in features.get(key, ())]
            yield Example(task.name, *split_prompt(tokenizer, np.array(tokens)))


def split_prompt(tokenizer: Tokenizer, tokens: np.ndarray) -> tuple[list[int], list[int]]:
    """Token ids of a dialogue, int [T] -> those of its prompt, with bos, and of its answer.

    Raises:
      UserError: nothing in it is to be answered.
    """
    # SeqIO pads with zeros, and 0 may also be the id of a token.
    ids: list[int] = np.trim_zeros(tokens, "b").tolist()
    template = tokenizer.template
    mark = tokenizer.encode(template.answer_mark)
    found = [i for i in range(len(ids)) if ids[i : i + len(mark)] == mark]
    if not found:
        raise UserError(f"An example has no {template.answer_mark}; name a task of dialogues.")
    start = found[-1] + len(mark)
    # White space before <sosp> has no tokens.
    colon = tokenizer.encode(template.colon)
    if ids[start : start + len(colon)] == colon:
        start += len(colon)
    return [*tokenizer.encode_prompt(""), *ids[:start]], ids[start:]
