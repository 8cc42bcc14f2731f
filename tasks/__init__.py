"""SeqIO tasks and mixtures: `import tasks` registers those of the demo."""

from speechgpt_jax import data  # noqa: F401 (imports TensorFlow before SeqIO does)
from tasks import demo_corpus  # noqa: F401
