"""Commands in processes of their own, whose paths are on a stand-in bucket."""

import json
import pathlib
import random
import time

from google.cloud.storage import retry

from speechgpt_jax.shipped import ASSETS
from tests import processes
from tests.bucket.stand_in import Bucket

SECONDS = 300
TINY = [
    "--gin.TOKENIZER=gs://bucket/tokenizer",
    "--gin.LlamaConfig.vocab_size=1706",
    "--gin.LlamaConfig.hidden_size=32",
    "--gin.LlamaConfig.intermediate_size=48",
    "--gin.LlamaConfig.num_layers=1",
    "--gin.LlamaConfig.num_heads=4",
    "--gin.LlamaConfig.num_kv_heads=4",
    "--gin.LlamaConfig.head_dim=8",
    "--gin.load_host_batches.batch_size=2",
    "--gin.load_host_batches.sequence_length=256",
    "--gin.lm.train.save_every=2",
    "--gin.lm.train.log_every=1",
    "--compilation_cache=gs://bucket/compiled",
]
STAGE_1 = [
    "speechgpt_jax.train",
    "--gin_file=gin/runs/llama_7b_stage1.gin",
    "--gin.UNITS=gs://bucket/train/units.txt",
    "--gin.lm.train.start_from=None",
    "--gin.lm.train.steps=6",
    *TINY,
]
STAGE_2 = [
    "speechgpt_jax.train",
    "--gin_file=gin/runs/llama_7b_stage2.gin",
    "--gin.DIALOGUES=gs://bucket/train/dialogues.jsonl",
    "--gin.lm.train.start_from=gs://bucket/runs/stage1",
    "--gin.lm.train.steps=2",
    *TINY,
]


class Shell:
    """Runs commands with the clients of a bucket; what they print is in files of `folder`."""

    def __init__(self, bucket: Bucket, folder: pathlib.Path):
        self.bucket, self.folder = bucket, folder

    def run(self, module: str, *arguments: str) -> str:
        """Runs a command to its end and returns what it printed."""
        process = self._start(module, *arguments)
        process.join(SECONDS)
        process.kill()
        printed = self._printed()
        assert process.exitcode == 0, printed
        return printed

    def kill(self, requests: int, module: str, *arguments: str) -> bool:
        """Kills a command after this many requests to the bucket; returns whether it was alive."""
        last = self.bucket.requests.total() + requests
        process = self._start(module, *arguments)
        while self.bucket.requests.total() < last and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        return process.exitcode != 0

    def _start(self, module, *arguments):
        command = run_module_that_retries_at_once, module, *arguments
        return processes.start(*command, output=self.folder, **self.bucket.environment)

    def _printed(self):
        return "".join((self.folder / name).read_text() for name in ("stdout", "stderr"))


def run_module_that_retries_at_once(module: str, *arguments: str) -> None:
    """`python -m module arguments...`, to be called in a process.

    Google's client library has no setting for the seconds that it waits before it tries again.
    """
    retry.DEFAULT_RETRY._initial = 0.01
    processes.run_module(module, *arguments)


def put_tokenizer_and_units(bucket: Bucket) -> None:
    """What STAGE_1 reads."""
    bucket.put_folder(ASSETS / "tokenizer", "tokenizer")
    rng = random.Random(0)
    lines = [[rng.randrange(200) for _ in range(40)] for _ in range(300)]
    units = ("<sosp>" + "".join(f"<{unit}>" for unit in line) + "<eosp>\n" for line in lines)
    bucket.put("train/units.txt", "".join(units).encode())


def run_undisturbed(shell: Shell, run: str) -> int:
    """Runs stage 1 into gs://bucket/`run`; returns the number of its requests."""
    before = shell.bucket.requests.total()
    shell.run(*STAGE_1, f"--output_dir=gs://bucket/{run}")
    return shell.bucket.requests.total() - before


def start_and_kill(shell: Shell, run: str, requests: int) -> bool:
    """Kills stage 1 into gs://bucket/`run` after so many requests; returns whether it was alive."""
    return shell.kill(requests, *STAGE_1, f"--output_dir=gs://bucket/{run}")


def resume_run(shell: Shell, run: str) -> None:
    """Runs stage 1 to its end, from the newest checkpoint that was committed when it was killed."""
    newest = newest_checkpoint(shell.bucket, run)
    printed = shell.run(*STAGE_1, f"--output_dir=gs://bucket/{run}")
    assert newest is None or f"Resuming from step {newest} of gs://bucket/{run}" in printed, printed


def newest_checkpoint(bucket: Bucket, run: str) -> int | None:
    """Step of the newest committed checkpoint; None if there is none."""
    committed = bucket.names(f"{run}/checkpoints/")
    steps = [n.split("/")[-2] for n in committed if n.endswith("/commit_success.txt")]
    return max((int(step) for step in steps if step.isdigit()), default=None)


def losses(bucket: Bucket, run: str) -> dict[int, float]:
    """The loss of each step."""
    text = bucket.objects[f"{run}/metrics.jsonl"].data.decode()
    return {row["step"]: row["loss"] for row in map(json.loads, text.splitlines())}
