"""Corpora of random texts and units, written once per session."""

import json
from pathlib import Path

import numpy as np
import pytest

import tasks  # noqa: F401 (registers them)
from tasks import speech_instruct
from tests.data.synthetic_corpus import write_corpus

GOLDEN = str(Path(__file__).parent.parent / "testdata" / "golden")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Three shards, each with ten dialogues per direction."""
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


@pytest.fixture(scope="session")
def asr_and_tts(folder):
    files = {"train": str(folder / "*.jsonl")}
    return [
        speech_instruct.dialogue_lines(f"test_{direction}", files, GOLDEN, direction)
        for direction in ("speech_to_text", "text_to_speech")
    ]
