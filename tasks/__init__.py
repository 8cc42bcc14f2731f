"""SeqIO registrations: `import tasks` makes them known by name."""

from tasks import demo_corpus  # noqa: F401
