"""Scores a trained model on SeqIO tasks.

    python -m speechgpt_jax.evaluate --run=runs/demo/stage2 --tasks=demo_asr,demo_tts --split=test

Gin binds other arguments of `evaluate_run`: --gin_file=... --gin.evaluate_run.batch_size=32
"""

from absl import flags

from speechgpt_jax import gin_utils
from speechgpt_jax.arguments import define, existing_folder, nonempty, positive_int

RUN = define("run", existing_folder, None, "Folder of a training run.", required=True)
TASKS = flags.DEFINE_list("tasks", None, "Names of SeqIO tasks or mixtures.", required=True)
SPLIT = define("split", nonempty, "test", "Split of the tasks.")
NUM_EXAMPLES = define(
    "num_examples", positive_int, None, "Number of examples per task; by default all."
)


def main() -> None:
    # Importing TensorFlow takes seconds; wrong flags are reported before.
    import tasks  # noqa: F401 (registers them)
    from speechgpt_jax.evaluation import evaluate

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
