"""SeqIO tasks that a run answers while it trains: `lm.train.answered`.

answered = AnsweredTasks(["demo_asr"], num_examples=32).prepare(tokenizer)
answered.names         # ["test/demo_asr/wer", ...]
answered(model)        # {"test/demo_asr/wer": 0.31, ...}, those of `evaluate` on a checkpoint
"""

import dataclasses
import functools
from collections.abc import Sequence

from speechgpt_jax import sharding
from speechgpt_jax.decoding.loading import check_copy, copy_for_decoding
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation.evaluate import Metrics, Scorer, check_task, generate_all
from speechgpt_jax.evaluation.examples import check_template
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import DType, LlamaConfig
from speechgpt_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class AnsweredTasks:
    """Tasks whose first examples are answered at every evaluation of a run.

    With several processes each answers its share of the examples, with a copy of the model on its
    own devices.

    Attributes:
      tasks: names of SeqIO tasks or mixtures.
      split: e.g. "test".
      num_examples: number of examples per task; None: all.
      batch_size: number of prompts that are decoded at the same time.
      sampling: how answers are drawn.
      forced: answers are forced into the form of the target, as those of chat and server are.
      devices: number of each process's devices over which the copy is sharded; None: as many as the
        model can be sharded over.
      dtype: dtype of weights and activations; by default that of `decoding_dtype`.
    """

    tasks: Sequence[str]
    split: str = "test"
    num_examples: int | None = 32
    batch_size: int = 16
    sampling: Sampling = GREEDY
    forced: bool = False
    devices: int | None = None
    dtype: DType | None = None

    def __post_init__(self):
        if isinstance(self.tasks, str) or not self.tasks:
            raise UserError(
                f"AnsweredTasks.tasks {self.tasks!r} must be a list with at least one SeqIO task"
                " or mixture, such as ['demo_asr']."
            )
        examples = 1 if self.num_examples is None else self.num_examples
        check_number("num_examples", examples, at_least=1)
        check_number("batch_size", self.batch_size, at_least=1)

    def check(self, tokenizer: Tokenizer, config: LlamaConfig) -> None:
        """Raises a UserError if the run's model can't answer these tasks; reads no examples."""
        check_copy(config, self.devices)
        for task in self.tasks:
            check_task(task, self.split)
            check_template(tokenizer, task)

    def prepare(self, tokenizer: Tokenizer) -> "Answered":
        """Reads the examples and tries the metrics on the right answers.

        Raises:
          UserError: a task is unknown or has no examples, or none with what its metrics compare.
        """
        return Answered(self, tokenizer)


class Answered:
    """Scores a model on the examples of tasks.

    Attributes:
      names: names of its figures.
    """

    def __init__(self, options: AnsweredTasks, tokenizer: Tokenizer):
        """Reads the examples; see `AnsweredTasks.prepare`."""
        self._options, self._tokenizer = options, tokenizer
        self._scorers = [
            Scorer(tokenizer, task, options.split, options.num_examples, forced=options.forced)
            for task in options.tasks
        ]
        self.names = [
            f"{options.split}/{name}" for scorer in self._scorers for name in scorer.metric_names()
        ]

    def __call__(self, model: Llama) -> dict[str, float]:
        """Figures of a model on the mesh of a run; all its processes call it together."""
        options = self._options
        copy, mesh = copy_for_decoding(model, options.devices, options.dtype)
        generate = functools.partial(
            generate_all,
            copy,
            self._tokenizer,
            batch_size=options.batch_size,
            sampling=options.sampling,
            dtype=options.dtype,
            mesh=mesh,
        )
        metrics: Metrics = {}
        with sharding.without_mesh():  # Without the run's mesh; the copy has its own.
            for scorer in self._scorers:
                metrics |= scorer.score(generate)
        return {
            f"{options.split}/{task}/{name}": value
            for task, figures in metrics.items()
            for name, value in figures.items()
        }
