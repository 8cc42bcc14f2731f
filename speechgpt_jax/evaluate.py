"""Scores a trained model on SeqIO tasks.

    python -m speechgpt_jax.evaluate --tasks=demo_asr,demo_tts --split=test
    python -m speechgpt_jax.evaluate --run=runs/demo/stage2 --tasks=demo_asr --recognise

The figures are printed and, if a run is named, added to its evaluation.json.

Gin binds other arguments of `evaluate_run`: --gin_file=... --gin.evaluate_run.batch_size=32
"""

from absl import flags

from speechgpt_jax import compilation_cache, gin_utils
from speechgpt_jax.arguments import (
    define,
    existing_folder,
    nonempty,
    output_folder,
    positive_int,
)
from speechgpt_jax.files import SHIPPED_MODEL

flags.adopt_module_key_flags(compilation_cache)
RUN = define(
    "run", existing_folder, SHIPPED_MODEL, "Folder of a training run; by default the shipped model."
)
OUTPUT_DIR = define(
    "output_dir", output_folder, None, "Folder for evaluation.json; by default that of --run."
)
TASKS = flags.DEFINE_list("tasks", None, "Names of SeqIO tasks or mixtures.", required=True)
SPLIT = define("split", nonempty, "test", "Split of the tasks.")
NUM_EXAMPLES = define(
    "num_examples", positive_int, None, "Number of examples per task; by default all."
)
RECOGNISE = flags.DEFINE_bool(
    "recognise",
    False,
    "Also let two recognisers transcribe the spoken answers; needs the packages of the extra test.",
)
MESH = define(
    "mesh", positive_int, None, "Number of devices over which the model is cut; by default one."
)


def main() -> None:
    # Importing TensorFlow takes seconds; wrong flags are reported before.
    import tasks  # noqa: F401 (registers them)
    from speechgpt_jax.evaluation import evaluate, spoken

    compilation_cache.use()
    metrics = gin_utils.call(
        evaluate.evaluate_run,
        run=RUN.value,
        tasks=TASKS.value,
        split=SPLIT.value,
        num_examples=NUM_EXAMPLES.value,
        more_metrics=[spoken.SpokenAnswers.by_default()] if RECOGNISE.value else [],
        output_dir=OUTPUT_DIR.value or (RUN.value if RUN.present else None),
        devices=MESH.value,
    )
    print(evaluate.table(metrics))


if __name__ == "__main__":
    gin_utils.run(main)
