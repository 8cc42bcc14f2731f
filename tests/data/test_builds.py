"""SpeechInstruct as built by TFDS and as cached by SeqIO."""

from pathlib import Path

import numpy as np
import pytest
import seqio

from speechgpt_jax.data.pipeline import load_batches
from tasks import speech_instruct
from tests import processes
from tests.data.packed_texts import once, texts_of

pytestmark = pytest.mark.slow

GOLDEN = str(Path(__file__).parent.parent / "testdata" / "golden")


def run(*command, path=""):
    done = processes.run(processes.run_module, *command, PYTHONPATH=str(path))
    assert done.returncode == 0, done.stderr[-2000:]


def test_tfds_builds_offline_the_dialogues_of_the_files(folder, tmp_path, asr_and_tts):
    command = ["tensorflow_datasets.scripts.cli.main", "build"]
    command += ["speech_instruct/cross_modal_instruction", f"--data_dir={tmp_path}"]
    run(*command, "--imports=speechgpt_jax.data.speech_instruct", f"--manual_dir={folder}")
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
    command = ["seqio.scripts.cache_tasks_main", "--module_import=my_tasks"]
    command += ["--tasks=test_cached", f"--output_cache_dir={tmp_path}", "--min_shards=2"]
    run(*command, path=tmp_path)
    speech_instruct.dialogue_lines("test_cached", files, GOLDEN, "speech_to_text")
    cached = load_batches(
        "test_cached", "train", batch_size=4, sequence_length=128, cache_dir=str(tmp_path)
    )
    vocabulary = seqio.get_mixture_or_task("test_cached").output_features["targets"].vocabulary
    texts = set(texts_of((next(cached) for _ in range(8)), vocabulary))
    assert sorted(texts) == once(asr_and_tts[0])
    restarted = load_batches(
        "test_cached", "train", batch_size=4, sequence_length=128, cache_dir=str(tmp_path)
    )
    restarted.restore(cached.state())
    np.testing.assert_equal(next(restarted), next(cached))
    with pytest.raises(ValueError, match=r"test_speech_to_text is not in .*seqio"):
        load_batches(
            asr_and_tts[0], "train", batch_size=1, sequence_length=9, cache_dir=str(tmp_path)
        )
