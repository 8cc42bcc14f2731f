"""Trains a HuBERT on the features of another model, or on their clusters.

    python -m tools.hubert_targets --manifest=corpus/manifest.jsonl --output=targets --directions=37
    python -m tools.whisper_to_hubert hubert_start --targets=targets
    python -m tools.train_hubert --gin_file=gin/runs/hubert_tiny.gin --targets=targets \\
        --start_from=hubert_start --output_dir=runs/hubert_tiny
    python -m tools.train_kmeans --hubert=runs/hubert_tiny/hubert --manifest=... --num_clusters=200

Without --gin_file the recipe is gin/runs/hubert_tiny.gin.

An interrupted run resumes when the same command is given again. The HuBERT without its heads is
written to OUTPUT_DIR/hubert in float16.
"""

import sys

from absl import flags

from speechgpt_jax import arguments, compilation_cache, gin_utils
from speechgpt_jax.arguments import existing_local_folder, output_folder
from speechgpt_jax.errors import one_line_errors

flags.adopt_module_key_flags(compilation_cache)
# Short flags and the gin parameters that they bind.
SHORT = {
    "start_from": "train_hubert.train.start_from",
    "steps": "train_hubert.train.steps",
    "learning_rate": "optimizer.AdamW.learning_rate",
}


def define_flags() -> None:
    arguments.define(
        "targets",
        existing_local_folder,
        None,
        "Folder that tools.hubert_targets wrote.",
        required=True,
    )
    arguments.define("output_dir", output_folder, None, "Folder of the run.", required=True)
    for name, binding in SHORT.items():
        flags.DEFINE_string(name, None, f"Same as --gin.{binding}.")
    gin_utils.define_flags()


def main(bindings: list[str]) -> None:
    gin_utils.hush_libraries()
    args = flags.FLAGS
    given = {binding: args[name].value for name, binding in SHORT.items()}
    _, more = gin_utils.split_arguments(
        [f"--gin.{binding}={value}" for binding, value in given.items() if value is not None]
    )
    gin_files = args.gin_file or ["gin/runs/hubert_tiny.gin"]
    gin_utils.parse(gin_files, bindings + more, args.gin_search_paths)
    from speechgpt_jax.host_memory import keep_freed_memory
    from speechgpt_jax.training import train_hubert

    keep_freed_memory()
    compilation_cache.use()
    gin_utils.call(train_hubert.train, targets=args.targets, output_dir=args.output_dir)


if __name__ == "__main__":
    with one_line_errors():
        argv, bindings = gin_utils.split_arguments(sys.argv)
        define_flags()
        arguments.run_with_flags(lambda: main(bindings), argv)
