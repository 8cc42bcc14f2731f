"""Scores a trained model on SeqIO tasks.

    python -m speechgpt_jax.evaluate --tasks=demo_asr,demo_tts --split=test
    python -m speechgpt_jax.evaluate --run=runs/demo/stage2 --tasks=demo_asr --recognise
    python -m speechgpt_jax.evaluate --run=runs/7b/stage3 --tasks=demo_asr --mesh=4 --multihost
    python -m speechgpt_jax.evaluate --answers=answers

The figures are printed and, if a run is named, added to its evaluation.json. With several processes
each answers its share of the examples, on its own devices. The answers of `infer --prompts_task`,
which resumes where it was killed, are scored without a model; evaluation.json is then beside them.

A gin file that imports `speechgpt_jax.evaluation.evaluate` can bind the tasks, as
gin/stages/evaluation.gin does for files of your own. With one, --gin.evaluate_run.batch_size=32 and
the like bind other arguments of `evaluate_run`.
"""

from absl import flags

from speechgpt_jax import compilation_cache, gin_utils, task_modules
from speechgpt_jax.arguments import (
    define,
    existing_folder,
    nonempty,
    output_folder,
    positive_int,
)
from speechgpt_jax.decoding.shards import SETTINGS, read_answers
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.files import read_json
from speechgpt_jax.shipped import SHIPPED_MODEL
from speechgpt_jax.training import process_flags

flags.adopt_module_key_flags(compilation_cache)
flags.adopt_module_key_flags(process_flags)
flags.adopt_module_key_flags(task_modules)
RUN = define(
    "run", existing_folder, SHIPPED_MODEL, "Folder of a training run; by default the shipped model."
)
OUTPUT_DIR = define(
    "output_dir",
    output_folder,
    None,
    "Folder for evaluation.json; by default that of --run or --answers.",
)
TASKS = flags.DEFINE_list(
    "tasks", None, "Names of SeqIO tasks or mixtures; by default those that a --gin_file binds."
)
ANSWERS = define(
    "answers", existing_folder, None, "Folder of answers of `infer --prompts_task`, to be scored."
)
SPLIT = define("split", nonempty, "test", "Split of the tasks.")
NUM_EXAMPLES = define(
    "num_examples", positive_int, None, "Number of examples per task; by default all."
)
RECOGNISE = flags.DEFINE_bool(
    "recognise",
    False,
    "Also let two recognisers transcribe the spoken answers; needs the extra `recognisers`.",
)
FORCED = flags.DEFINE_bool(
    "forced",
    False,
    "Force answers into the form of the right one, as chat, serve and infer do with questions.",
)
MESH = define(
    "mesh",
    positive_int,
    None,
    "Number of this process's devices over which the model is sharded; by default one.",
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "dtype of weights and activations; by default the run's, on a CPU float32.",
)


# Flags of a model that answers, without effect on --answers.
MODEL_FLAGS = (RUN, SPLIT, NUM_EXAMPLES, FORCED, MESH, DTYPE)
MODEL_FLAGS += process_flags.ALL


def main() -> None:
    files = flags.FLAGS.gin_file
    if bool(ANSWERS.value) == bool(TASKS.value or files):
        raise UserError(
            "Give either --tasks or a --gin_file that binds them, to be answered and scored, or"
            " --answers."
        )
    for flag in MODEL_FLAGS if ANSWERS.value else ():
        if flag.present:
            raise UserError(f"--answers are scored as they are; leave out --{flag.name}.")
    if ANSWERS.value:
        score_answers()
        return
    # Importing TensorFlow and JAX takes seconds; wrong flags are reported before.
    task_modules.register()
    compilation_cache.use()
    # Each process prints its own mistakes: at an exception it would leave the others waiting.
    with process_flags.connected(independent=True), one_line_errors():
        score_run()


def score_answers() -> None:
    """Scores the answers of --answers."""
    rows = read_answers(ANSWERS.value)
    settings = read_json(f"{ANSWERS.value}/{SETTINGS}", "the settings of infer --answers")
    split = settings.get("split") or ""
    if not split:
        raise UserError(f"{ANSWERS.value}/{SETTINGS} names no split; see infer --prompts_task.")
    task_modules.register()
    compilation_cache.use()
    from speechgpt_jax.evaluation import evaluate

    folder = OUTPUT_DIR.value or ANSWERS.value
    evaluate.read_saved(folder)  # A damaged file is reported before the work.
    metrics = evaluate.evaluate_answers(rows, more_metrics())
    evaluate.save(folder, split, metrics)
    print(evaluate.table(metrics))


def score_run() -> None:
    """Scores the answers of --run to the examples of --tasks."""
    import jax

    from speechgpt_jax.evaluation import evaluate

    tasks_of_flag = {} if TASKS.value is None else {"tasks": TASKS.value}
    metrics = gin_utils.call(
        evaluate.evaluate_run,
        run=RUN.value,
        **tasks_of_flag,
        split=SPLIT.value,
        num_examples=NUM_EXAMPLES.value,
        forced=FORCED.value,
        more_metrics=more_metrics(),
        output_dir=OUTPUT_DIR.value or (RUN.value if RUN.present else None),
        devices=MESH.value,
        dtype=DTYPE.value,
    )
    if jax.process_index() == 0:
        print(evaluate.table(metrics))


def more_metrics() -> list:
    """The metrics of --recognise."""
    if not RECOGNISE.value:
        return []
    from speechgpt_jax.evaluation.spoken import SpokenAnswers

    return [SpokenAnswers.by_default()]


if __name__ == "__main__":
    gin_utils.run(main)
