"""The way from recordings to an exported model, with every path on a bucket that fails at times."""

import dataclasses
import gzip
import json
import os
import random
import re

import numpy as np
import pytest
import safetensors.numpy

from speechgpt_jax import prompts
from speechgpt_jax.demo_world.clips import Clip, write_clips
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.audio import save_audio
from tests.bucket import stand_in
from tests.bucket.commands import (
    STAGE_2,
    Shell,
    losses,
    put_tokenizer_and_units,
    resume_run,
    run_undisturbed,
    start_and_kill,
)
from tests.models.hugging_face import CONFIG, reference
from tests.tokenizer import byte_level

pytestmark = pytest.mark.slow

# Qwen's embedding has more rows than its tokenizer ids.
QWEN2 = dataclasses.replace(CONFIG, vocab_size=700, qkv_bias=True)
CLIPS = ("plain-02415-kal16", "plain-02431-awb", "plain-02457-awb")


@pytest.fixture(scope="module")
def bucket():
    with stand_in.served() as bucket:
        for name in ("vocoder", "hubert"):
            bucket.put_folder(ASSETS / name, name)
        for clip in CLIPS:
            data = (ASSETS / "corpus" / "clips" / f"{clip}.flac").read_bytes()
            bucket.put(f"recordings/{clip}.flac", data)
        rows = [{"path": f"recordings/{clip}.flac", "text": "a few words"} for clip in CLIPS]
        bucket.put("recordings.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        put_tokenizer_and_units(bucket)
        bucket.fault_every = 40
        yield bucket


@pytest.fixture(scope="module")
def shell(bucket, tmp_path_factory):
    return Shell(bucket, tmp_path_factory.mktemp("shell"))


def test_recordings_become_units_sound_and_training_data(bucket, shell):
    hubert = "--hubert=gs://bucket/hubert"
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


def test_training_killed_at_random_moments_resumes_exactly(bucket, shell):
    requests = run_undisturbed(shell, "runs/undisturbed")
    for moment in random.Random(0).choices(range(1, requests), k=2):
        start_and_kill(shell, "runs/stage1", moment)
    resume_run(shell, "runs/stage1")
    assert losses(bucket, "runs/stage1") == losses(bucket, "runs/undisturbed")
    assert list(losses(bucket, "runs/stage1")) == [1, 2, 3, 4, 5, 6]
    assert bucket.objects["runs/stage1/loss.png"].data.startswith(b"\x89PNG")


def test_stage_2_is_evaluated_asked_and_exported(bucket, shell):
    # So much that the pool of the packing takes a part of an epoch, not a hundred of them.
    data = b"".join(bucket.objects[name].data for name in bucket.names("stage2/asr-"))
    bucket.put("train/dialogues.jsonl", data * 100)
    shell.run(*STAGE_2, "--output_dir=gs://bucket/runs/stage2")
    assert list(losses(bucket, "runs/stage2")) == [1, 2]

    run = "--run=gs://bucket/runs/stage2"
    shell.run("speechgpt_jax.evaluate", run, "--tasks=demo_asr", "--num_examples=2")
    scores = json.loads(bucket.objects["runs/stage2/evaluation.json"].data)
    assert "demo_asr" in scores["test"]

    shell.run(
        "speechgpt_jax.infer", run, f"--audio=gs://bucket/recordings/{CLIPS[0]}.flac",
        "--hubert=gs://bucket/hubert", "--vocoder=gs://bucket/vocoder",
        "--output=gs://bucket/answer.wav", "--max_new_tokens=8",
    )  # fmt: skip

    shell.run("tools.convert_llama", "to_hf", "gs://bucket/runs/stage2", "gs://bucket/exported")
    assert b"## Stages" in bucket.objects["exported/README.md"].data


def test_a_base_of_hugging_face_gets_units_and_goes_back(bucket, shell, tmp_path):
    reference(QWEN2).save_pretrained(tmp_path)
    byte_level.write(tmp_path, byte_level.QWEN)
    bucket.put_folder(tmp_path, "qwen")
    shell.run("tools.convert_llama", "from_hf", "gs://bucket/qwen", "gs://bucket/runs/qwen")
    shell.run("tools.pack_run", "gs://bucket/runs/qwen", "gs://bucket/packed")
    shell.run("tools.convert_llama", "to_hf", "gs://bucket/packed", "gs://bucket/qwen_again")
    before, after = tensors(bucket, "qwen"), tensors(bucket, "qwen_again")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])

    extend = "tools.extend_vocabulary", "gs://bucket/packed", "gs://bucket/runs/with_units"
    printed = shell.run(*extend, "--units=200")
    first, last = map(int, re.findall(r"new ids (\d+) to (\d+)", printed)[0])
    assert last - first + 1 == 200 + len(prompts.MARKERS)
    shell.run("tools.convert_llama", "to_hf", extend[-1], "gs://bucket/with_units")
    rows = tensors(bucket, "with_units")["model.embed_tokens.weight"]
    assert len(rows) == last + 1
    np.testing.assert_array_equal(rows[:first], before["model.embed_tokens.weight"][:first])


def tensors(bucket, folder):
    return safetensors.numpy.load(bucket.objects[f"{folder}/model.safetensors"].data)


def test_centroids_go_to_fairseq_and_back(bucket, shell):
    folder = "gs://bucket/hubert"
    shell.run("tools.convert_to_fairseq", "kmeans", folder, "gs://bucket/fairseq")
    shell.run("tools.convert_kmeans", "gs://bucket/fairseq/kmeans.bin", "gs://bucket/centroids")
    assert bucket.objects["centroids/kmeans.safetensors"].data == (
        bucket.objects["hubert/kmeans.safetensors"].data
    )


RECIPE = """
from __gin__ import dynamic_registration
from speechgpt_jax.speech.encoder import config
from speechgpt_jax.training import train_hubert

include 'gin/runs/hubert_base.gin'
include 'sizes.gin'
train_hubert.train.model = @config.HubertConfig()
train_hubert.train.steps = 1
train_hubert.train.batch_size = 2
train_hubert.train.crop_seconds = 0.5
"""
SIZES = """
from __gin__ import dynamic_registration
from speechgpt_jax.speech.encoder import config

config.HubertConfig.conv_dim = (8, 16, 16)
config.HubertConfig.conv_kernel = (10, 8, 8)
config.HubertConfig.conv_stride = (5, 8, 8)
config.HubertConfig.hidden_size = 16
config.HubertConfig.num_layers = 1
config.HubertConfig.num_heads = 2
config.HubertConfig.intermediate_size = 16
config.HubertConfig.position_kernel = 8
config.HubertConfig.position_groups = 4
config.HubertConfig.feature_layer = 1
"""


def test_recorded_voices_become_a_hubert_and_a_corpus(bucket, shell, tmp_path, monkeypatch):
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    save_audio(tmp_path / "noise.wav", noise.astype(np.float32))
    # Called as: flite -voice slt -t TEXT -o WAV
    (tmp_path / "flite").write_text(f'#!/bin/sh\ncp {tmp_path}/noise.wav "$6"\n')
    (tmp_path / "flite").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setitem(bucket.environment, "PATH", path)
    voices = ("--plain_clips=2", "--pitched_clips=1", "--espeak_clips=0")
    shell.run("tools.record_voices", "--output=gs://bucket/voices", *voices)
    wavs = [name for name in bucket.names("voices/") if name.endswith(".wav")]
    spoken = [name for name in wavs if not name.endswith("-slt.wav")]
    assert (len(wavs), len(spoken)) == (4, 3) and bucket.objects[wavs[0]].data.startswith(b"RIFF")

    manifest, targets = "--manifest=gs://bucket/voices/manifest.jsonl", "gs://bucket/targets"
    teacher = ("--teacher=mfcc", "--num_clusters=5")
    shell.run("tools.hubert_targets", manifest, f"--output={targets}", *teacher)
    bucket.put("recipes/hubert.gin", RECIPE.encode())
    bucket.put("recipes/sizes.gin", SIZES.encode())
    shell.run(
        "tools.train_hubert", "--gin_file=gs://bucket/recipes/hubert.gin",
        "--gin_search_paths=gs://bucket/recipes", f"--targets={targets}",
        "--output_dir=gs://bucket/runs/hubert",
    )  # fmt: skip
    assert "front_end.conv_layers.0.kernel" in tensors(bucket, "runs/hubert/hubert")

    clip = Clip("a", "noise.wav", "one cat.", "slt", "test", "plain", "animals", seconds=1.0)
    write_clips([clip], tmp_path / "manifest.jsonl")
    (tmp_path / "settings.json").write_text("{}")
    shell.run(
        "tools.build_demo_corpus", "encode", f"--work_dir={tmp_path}",
        "--hubert=gs://bucket/hubert", "--voices=gs://bucket/voices", "--output=gs://bucket/corpus",
    )  # fmt: skip
    for split, ids in (("test", [b"a"]), ("train", [name[7:].encode() for name in spoken])):
        records = bucket.objects[f"corpus/utterances-{split}.tfrecord.gz"].data
        assert all(name in gzip.decompress(records) for name in ids)
    assert bucket.objects["corpus/clips/a.flac"].data.startswith(b"fLaC")


def test_nothing_is_left_half_written(bucket):
    # A killed run may leave unfinished files.
    others = [name for name in bucket.names() if not name.startswith("runs/stage1/")]
    assert not [name for name in others if ".part" in name], "something is half-written"


def test_the_bucket_did_fail(bucket):
    assert all(bucket.faults[fault] >= 3 for fault in stand_in.FAULTS), bucket.faults
