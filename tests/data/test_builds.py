"""SpeechInstruct built by TFDS and cached by SeqIO, and read back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from speechgpt_jax.data.pipeline import load_batches, load_once
from speechgpt_jax.data.speech_instruct import SpeechInstruct
from tasks import speech_instruct

GOLDEN = str(Path(__file__).parent.parent / "testdata" / "golden")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten dialogues of each direction a shard, in three shards."""
    folder = tmp_path_factory.mktemp("speech_instruct")
    rng = np.random.default_rng(0)

    def units():
        return "<sosp>" + "".join(f"<{u}>" for u in rng.integers(0, 1000, 8)) + "<eosp>"

    for shard in range(3):
        records = []
        for i in range(10):
            asr = f"[Human]: Hear {shard} {i}. This is input: {units()}<eoh> [SpeechGPT]: a<eoa> "
            tts = f"[Human]: Say {shard} {i}. This is input: a<eoh> [SpeechGPT]: {units()}<eoa> "
            records += [{"prefix": "Be kind.\n", "plain_text": text} for text in (asr, tts)]
        file = folder / f"cross_modal_instruction-train-{shard:05d}-of-00003.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def asr_and_tts(folder):
    files = {"train": str(folder / "*.jsonl")}
    return [
        speech_instruct.dialogue_lines(
            f"test_build_{direction}", files, GOLDEN, direction, shuffle_buffer_size=20
        )
        for direction in ("speech_to_text", "text_to_speech")
    ]


def texts_of(batches, vocabulary):
    """The text of every packed example."""
    for batch in batches:
        for tokens, segments in zip(
            batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True
        ):
            for segment in range(1, segments.max() + 1):
                yield vocabulary.decode(tokens[segments == segment])


def once(task):
    vocabulary = seqio.get_mixture_or_task(task).output_features["targets"].vocabulary
    batches = load_once(task, "train", batch_size=4, sequence_length=128)
    return sorted(texts_of(batches, vocabulary))


def test_tfds_builds_offline_what_the_files_hold(folder, tmp_path, asr_and_tts):
    builder = SpeechInstruct(config="cross_modal_instruction", data_dir=tmp_path)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
    )
    built = speech_instruct.tfds_dialogues(
        "test_tfds",
        "speech_instruct/cross_modal_instruction:1.0.0",
        GOLDEN,
        str(tmp_path),
        direction="speech_to_text",
    )
    assert once(built) == once(asr_and_tts[0]) != []


def test_cached_tasks_are_the_same(folder, tmp_path, asr_and_tts):
    module = tmp_path / "my_tasks.py"
    files = {"train": str(folder / "*.jsonl")}
    module.write_text(
        "from tasks import speech_instruct\n"
        f"speech_instruct.dialogue_lines('test_cached', {files}, {GOLDEN!r}, 'speech_to_text')\n"
    )
    command = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--module_import=my_tasks"]
    command += ["--tasks=test_cached", f"--output_cache_dir={tmp_path}", "--min_shards=2"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    speech_instruct.dialogue_lines(
        "test_cached", files, GOLDEN, "speech_to_text", shuffle_buffer_size=20
    )
    cached = load_batches(
        "test_cached", "train", batch_size=4, sequence_length=128, cache_dir=str(tmp_path)
    )
    vocabulary = seqio.get_mixture_or_task("test_cached").output_features["targets"].vocabulary
    texts = set(texts_of((next(cached) for _ in range(8)), vocabulary))
    assert sorted(texts) == once(asr_and_tts[0])
    with pytest.raises(ValueError, match=r"test_build_speech_to_text is not in .*seqio"):
        load_batches(
            asr_and_tts[0], "train", batch_size=1, sequence_length=9, cache_dir=str(tmp_path)
        )
