"""Mixtures of SpeechInstruct by rates, and its division among hosts."""

import logging
from pathlib import Path

import numpy as np
import pytest
import seqio

from speechgpt_jax import gin_utils
from speechgpt_jax.data.pipeline import load_batches
from tasks import mixtures
from tests.data.packed_texts import once, texts_of

GOLDEN = str(Path(__file__).parent.parent / "testdata" / "golden")


@pytest.mark.slow
def test_rates_are_kept(asr_and_tts):
    mixture = mixtures.mix("test_mixture", asr_and_tts, [3, 1])
    vocabulary = seqio.get_mixture_or_task(mixture).output_features["targets"].vocabulary
    batches = load_batches(mixture, "train", batch_size=16, sequence_length=256)
    texts = list(texts_of((next(batches) for _ in range(8)), vocabulary))
    assert np.mean(["Hear" in text for text in texts]) == pytest.approx(0.75, abs=0.06)


@pytest.mark.slow
def test_rates_are_bound_from_gin(folder, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "why?", "answer": "so."}\n')
    macros = {"TOKENIZER": GOLDEN, "DIALOGUES": f"{folder}/*", "INSTRUCTIONS": f"{tmp_path}/*"}
    bindings = [f"{name} = {value!r}" for name, value in macros.items()]
    gin_utils.parse(
        ["gin/runs/llama_7b_stage2.gin", "gin/stages/cross_modal_mixture.gin"],
        [*bindings, "mixtures.mix.rates = [1, 2, 1]", "lm.train.start_from = 'runs/stage1'"],
    )
    mixture = seqio.get_mixture_or_task(gin_utils.call(mixtures.mix))
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    (text,) = once("text_instruction")
    seqio.MixtureRegistry.remove(mixture.name)
    for name in rates:  # Other tests have tasks of these names.
        seqio.TaskRegistry.remove(name)
    assert rates == {"asr": 1.0, "tts": 2.0, "text_instruction": 1.0}
    assert text.endswith("[Human] : why? <eoh> [SpeechGPT] : so.<eoa> ")


@pytest.mark.parametrize(
    ("names", "rates", "message"),
    [
        (["test_speech_to_text", "asr!"], [1, 1], "has an unknown task 'asr!'; there are .*demo_"),
        (["test_speech_to_text"], [0], r"has the rates \[0\] for 1 tasks"),
        (["test_speech_to_text"], [1, 1], r"has the rates \[1, 1\] for 1 tasks"),
        (["test_speech_to_text", "test_text_to_speech"], [2, -1], r"has the rates \[2, -1\]"),
    ],
)
def test_bad_mixtures_are_user_errors(asr_and_tts, names, rates, message):
    with pytest.raises(ValueError, match=message):
        mixtures.mix("test_never", names, rates)


@pytest.mark.slow
def test_uneven_files_are_warned_of(asr_and_tts, caplog):
    options = {"batch_size": 1, "sequence_length": 128}
    caplog.set_level(logging.WARNING, "speechgpt_jax")
    load_batches(asr_and_tts[0], "train", **options, num_readers=2)
    assert "test_speech_to_text has 3 files for 2 readers: readers with fewer files" in caplog.text
    load_batches(asr_and_tts[0], "train", **options, num_readers=4)
    assert "3 files for 4 readers: every reader goes through all of them" in caplog.text


@pytest.mark.slow
def test_hosts_of_any_number_read_everything_once_an_epoch(asr_and_tts):
    """Also after a restart with another number of hosts."""
    task = seqio.get_mixture_or_task(asr_and_tts[0])

    def read(host, hosts):
        shard_info = seqio.ShardInfo(host, hosts)
        dataset = task.get_dataset(None, "train", shuffle=True, seed=0, shard_info=shard_info)
        return [tuple(example["targets"].tolist()) for example in dataset.as_numpy_iterator()]

    whole = sorted(read(0, 1))
    assert len(set(whole)) == 30
    for hosts in (2, 4):
        assert sorted(e for host in range(hosts) for e in read(host, hosts)) == whole
