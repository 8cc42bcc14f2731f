"""Trains a unit vocoder on recordings and their units.

    python -m tools.train_vocoder --gin_file=gin/runs/vocoder_tiny.gin \\
        --manifest=corpus/units.jsonl --split=train --output_dir=runs/vocoder

Each row of the manifest is a recording {path, units, durations, speaker}, `durations` in codes of
20 ms. An interrupted run resumes when the same command is given again. Recordings on gs:// are
copied to the folder for temporary files (TMPDIR) while it runs. The trained vocoder is written to
OUTPUT_DIR/vocoder in float16.
"""

from absl import flags

from speechgpt_jax import arguments, compilation_cache, gin_utils
from speechgpt_jax.arguments import existing_file, output_folder

flags.adopt_module_key_flags(compilation_cache)
MANIFEST = arguments.define(
    "manifest", existing_file, None, "JSONL of recordings and their units.", required=True
)
SPLIT = flags.DEFINE_string("split", None, "Train on the manifest's rows of this split only.")
OUTPUT_DIR = arguments.define(
    "output_dir", output_folder, None, "Folder of the run.", required=True
)


def main() -> None:
    from speechgpt_jax.malloc import keep_freed_memory
    from speechgpt_jax.manifests import read_manifest
    from speechgpt_jax.training import train_vocoder

    keep_freed_memory()
    compilation_cache.use()
    rows = read_manifest(MANIFEST.value, SPLIT.value)
    gin_utils.call(train_vocoder.train, rows=rows, output_dir=OUTPUT_DIR.value)
    print(f"The trained vocoder is in {OUTPUT_DIR.value}/vocoder.")


if __name__ == "__main__":
    gin_utils.run(main)
