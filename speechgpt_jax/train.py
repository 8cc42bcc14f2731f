"""Trains one stage of the language model.

    python -m speechgpt_jax.train --gin_file=gin/runs/demo_stage1.gin --output_dir=runs/stage1 \\
        --gin.train.steps=100

The same command goes on where a stopped run was.
"""

from absl import flags

from speechgpt_jax import gin_utils
from speechgpt_jax.training import lm

OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the run: checkpoints, metrics, plots.", required=True
)


def main():
    gin_utils.call(lm.train, output_dir=OUTPUT_DIR.value, config_text=gin_utils.operative_config)


if __name__ == "__main__":
    gin_utils.run(main)
