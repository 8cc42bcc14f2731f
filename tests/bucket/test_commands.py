"""Commands whose every path is on a bucket that fails at times."""

import json
import multiprocessing
import os
import runpy
import sys

import pytest
import stand_in

from speechgpt_jax.files import ASSETS

pytestmark = pytest.mark.slow

# Imports once, then forks: importing takes a fresh process several seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "google.cloud.storage",
        "speechgpt_jax.corpus.synthesize",
        "speechgpt_jax.corpus.speech_instruct",
    ]
)
CLIPS = ("plain-02415-kal16", "plain-02431-awb", "plain-02457-awb")


def run_module(module, arguments, environment, log):
    """The body of a process; what it prints goes to the file `log`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


class Shell:
    """Runs commands whose paths are on the bucket."""

    def __init__(self, bucket, folder):
        self.bucket, self.log = bucket, folder / "log"

    def start(self, module, *arguments):
        process = PROCESSES.Process(
            target=run_module, args=(module, arguments, self.bucket.environment, self.log)
        )
        process.start()
        return process

    def run(self, module, *arguments):
        """Runs a command to its end and returns what it printed."""
        process = self.start(module, *arguments)
        process.join(120)
        process.kill()
        printed = self.log.read_text()
        assert process.exitcode == 0, printed
        return printed


@pytest.fixture(scope="module")
def bucket():
    with stand_in.served() as bucket:
        for name in ("tokenizer", "vocoder", "hubert_tiny"):
            bucket.put_folder(ASSETS / name, name)
        for clip in CLIPS:
            data = (ASSETS / "corpus" / "clips" / f"{clip}.flac").read_bytes()
            bucket.put(f"recordings/{clip}.flac", data)
        rows = [{"path": f"recordings/{clip}.flac", "text": "a few words"} for clip in CLIPS]
        bucket.put("recordings.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        bucket.fault_every = 20
        yield bucket


@pytest.fixture(scope="module")
def shell(bucket, tmp_path_factory):
    return Shell(bucket, tmp_path_factory.mktemp("shell"))


def test_recordings_become_units_sound_and_training_data(bucket, shell):
    hubert = "--hubert=gs://bucket/hubert_tiny"
    shell.run(
        "tools.extract_units", "--input=gs://bucket/recordings.jsonl", "--output=gs://bucket/units",
        hubert, "--shard_size=2",
    )  # fmt: skip
    assert bucket.names("units/units-") == [f"units/units-0000{i}-of-00002.jsonl" for i in (0, 1)]
    rows = [json.loads(x) for n in bucket.names("units/units-") for x in lines(bucket, n)]
    assert all(len(row["units"]) > 20 for row in rows) and len(rows) == 3

    shell.run(
        "tools.build_speech_instruct", "modality_adaptation",
        "--units=gs://bucket/units", "--output=gs://bucket/stage1",
    )  # fmt: skip
    shell.run(
        "tools.build_speech_instruct", "cross_modal_instruction",
        "--units=gs://bucket/units", "--output=gs://bucket/stage2",
    )  # fmt: skip
    assert [len(lines(bucket, name)) for name in bucket.names("stage2/asr-")] == [2, 1]

    shell.run(
        "tools.synthesize", "--units=gs://bucket/units/units-00001-of-00002.jsonl",
        "--vocoder=gs://bucket/vocoder", "--output=gs://bucket/wavs",
    )  # fmt: skip
    wavs = [bucket.objects[name].data for name in bucket.names("wavs/") if name.endswith("wav")]
    assert len(wavs) == 1 and wavs[0][:4] == b"RIFF" and len(wavs[0]) > 16000


def lines(bucket, name):
    return bucket.objects[name].data.decode().splitlines()


def test_the_bucket_did_fail(bucket):
    assert all(bucket.faults[fault] >= 1 for fault in stand_in.FAULTS), bucket.faults
