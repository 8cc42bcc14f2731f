"""SeqIO registrations: `import tasks` makes them known by name."""

from speechgpt_jax import data  # noqa: F401 (imports TensorFlow before SeqIO does)
from tasks import demo_corpus  # noqa: F401
