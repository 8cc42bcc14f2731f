"""Scores a trained model on SeqIO tasks.

    python -m speechgpt_jax.evaluate --run=runs/demo/stage2 --tasks=demo_asr,demo_tts --split=test

Other arguments of `evaluate_run` by gin: --gin_file=... --gin.evaluate_run.batch_size=32
"""

from absl import flags

import tasks  # noqa: F401 (registers them)
from speechgpt_jax import gin_utils
from speechgpt_jax.evaluation import evaluate

RUN = flags.DEFINE_string("run", None, "Folder of a training run.", required=True)
TASKS = flags.DEFINE_list("tasks", None, "SeqIO tasks or mixtures.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "Split of the tasks.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "So many of each task; all by default.")


def main() -> None:
    metrics = gin_utils.call(
        evaluate.evaluate_run,
        run=RUN.value,
        tasks=TASKS.value,
        split=SPLIT.value,
        num_examples=NUM_EXAMPLES.value,
    )
    print(evaluate.table(metrics))


if __name__ == "__main__":
    gin_utils.run(main)
