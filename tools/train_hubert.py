"""Trains a HuBERT on the features of another model, or on their clusters.

    python -m tools.hubert_targets --manifest=corpus/manifest.jsonl --output=targets --directions=37
    python -m tools.whisper_to_hubert hubert_start --targets=targets
    python -m tools.train_hubert --gin_file=gin/runs/hubert_from_whisper.gin --targets=targets \\
        --gin.train_hubert.train.start_from=hubert_start --output_dir=runs/hubert_from_whisper
    python -m tools.train_kmeans --hubert=runs/hubert_from_whisper/hubert --manifest=... \\
        --num_clusters=200

An interrupted run resumes when the same command is given again. Targets on gs:// are copied to the
folder for temporary files (TMPDIR) while it runs. The HuBERT without its heads is
written to OUTPUT_DIR/hubert in float16.
"""

from absl import flags

from speechgpt_jax import arguments, compilation_cache, gin_utils
from speechgpt_jax.arguments import existing_folder, output_folder

flags.adopt_module_key_flags(compilation_cache)
TARGETS = arguments.define(
    "targets",
    existing_folder,
    None,
    "Folder that tools.hubert_targets wrote.",
    required=True,
)
OUTPUT_DIR = arguments.define(
    "output_dir", output_folder, None, "Folder of the run.", required=True
)


def main() -> None:
    from speechgpt_jax.malloc import keep_freed_memory
    from speechgpt_jax.training import train_hubert

    keep_freed_memory()
    compilation_cache.use()
    gin_utils.call(train_hubert.train, targets=TARGETS.value, output_dir=OUTPUT_DIR.value)
    print(f"The trained HuBERT is in {OUTPUT_DIR.value}/hubert.")


if __name__ == "__main__":
    gin_utils.run(main)
