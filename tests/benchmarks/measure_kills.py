"""Kills training runs on a stand-in bucket (SIGKILL) at random moments, and resumes them.

    python -m tests.benchmarks.measure_kills --kills=20

Every run is killed once, after a random number of its requests to the bucket: while it starts,
reads, trains or saves. The bucket answers every 20th request with 429, with 503 or slowly. The same
command then resumes from the newest checkpoint that was complete, and its losses are compared, bit
for bit, with those of a run that nothing disturbed.
"""

import pathlib
import random
import tempfile

from speechgpt_jax import arguments
from tests.benchmarks import docs_table
from tests.bucket import stand_in
from tests.bucket.commands import (
    Shell,
    losses,
    newest_checkpoint,
    put_tokenizer_and_units,
    resume_run,
    run_undisturbed,
    start_and_kill,
)


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--kills", type=arguments.positive_int, default=20)
    parser.add_argument("--seed", type=arguments.at_least(0), default=0, help="seed of the moments")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    with stand_in.served() as bucket, tempfile.TemporaryDirectory() as folder:
        put_tokenizer_and_units(bucket)
        bucket.fault_every = 20
        shell = Shell(bucket, pathlib.Path(folder))
        requests = run_undisturbed(shell, "runs/undisturbed")
        expected = losses(bucket, "runs/undisturbed")
        rng = random.Random(args.seed)
        killed = equal = 0
        saved = []
        while killed < args.kills:
            run = f"runs/{killed}"
            if not start_and_kill(shell, run, rng.randrange(1, requests)):
                continue  # It had fewer requests and was done.
            killed += 1
            saved.append(newest_checkpoint(bucket, run) or 0)
            resume_run(shell, run)
            equal += losses(bucket, run) == expected
            print(f"{killed}: resumed from step {saved[-1]}; {equal} curves equal", flush=True)
    table = docs_table.Table("kills", ["runs on a bucket, killed at a random moment", "figure"])
    table.add("runs killed once", f"{killed}")
    table.add("of them resumed from the newest complete checkpoint", f"{len(saved)}")
    table.add("steps of these checkpoints", ", ".join(map(str, sorted(set(saved)))))
    table.add("loss curves equal to the undisturbed run's, bit for bit", f"{equal}")
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
