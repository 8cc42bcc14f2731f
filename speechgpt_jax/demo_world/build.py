"""Builds the shipped corpus: synthesizes clips of the demo world, then encodes them as records.

The command is tools.build_demo_corpus.
"""

import dataclasses
import json
import os
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from etils import epath
from rich.progress import track

from speechgpt_jax import files, manifests, shipped
from speechgpt_jax.corpus import many_voices, text_to_speech
from speechgpt_jax.corpus.perturb_units import perturb
from speechgpt_jax.demo_world import world as demo_world
from speechgpt_jax.demo_world.clips import (
    SPLITS,
    Clip,
    check_no_leakage,
    planned_clips,
    read_clips,
    write_clips,
)
from speechgpt_jax.demo_world.human_prompts import HUMAN_PROMPTS, copy_human_prompts, human_prompts
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import audio
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.unit_text import reduce_units

SHIPPED_CORPUS = shipped.ASSETS / "corpus"
# (split, kind) -> number of recordings shipped as FLAC.
SHIPPED_CLIPS = {
    ("test", "question"): 12,
    ("unheard_voice", "question"): 6,
    ("test", "plain"): 6,
    ("unheard_voice", "plain"): 3,
    ("human", "prompt"): 15,
}
ENCODE_BATCH = 256  # clips
# The first file that `synthesize` writes.
SETTINGS = "settings.json"
# Topic of recordings whose text is not of the demo's world.
QUOTATIONS = "quotations"
# Speeds of perturbed clips are drawn from [1 / MAX_SPEED, MAX_SPEED].
MAX_SPEED = 1.15

Units = tuple[np.ndarray, np.ndarray]  # reduced units [N], durations [N] in frames of 20 ms
Fields = dict[str, str | np.ndarray]  # of one record


def synthesize_clip(clip: Clip, template: str, work_dir: Path) -> Clip:
    """Writes the clip's wav unless it exists, and returns the clip with its length in seconds.

    Args:
      clip: text and voice.
      template: template of a text-to-speech command.
      work_dir: folder that `clip.path` is relative to.

    Raises:
      UserError: the command failed, or its output is not 16 kHz mono.
    """
    path = work_dir / clip.path
    if not path.exists():
        # A perturbed clip appears only when it is perturbed.
        plain = path if clip.perturbation is None else path.with_stem(f"{path.stem}-plain")
        text_to_speech.synthesize(template, clip.voice, clip.text, plain)
        if clip.perturbation is not None:
            rng = np.random.default_rng(clip.perturbation)
            speed = MAX_SPEED ** rng.uniform(-1, 1)
            audio.save_audio(path, perturb(audio.load_audio(plain), speed, rng))
            plain.unlink()
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path} can't be read as sound ({error}); let the --tts command write a wav, and"
            " remove this file."
        ) from error
    if info.samplerate != SAMPLE_RATE or info.channels != 1:
        raise UserError(
            f"{path} has {info.samplerate} Hz and {info.channels} channels; the corpus needs "
            f"{SAMPLE_RATE} Hz mono: let the --tts command convert it."
        )
    return dataclasses.replace(clip, seconds=round(info.duration, 3))


# ---- synthesize --------------------------------------------------------------------------------


def synthesize(
    work_dir: Path,
    tts: str,
    human: files.Path | None,
    processes: int,
    more_sentences: int = 0,
    short_sentences: int = 0,
    answer_voice_sentences: int = 0,
) -> list[Clip]:
    """Writes the wavs of all clips and WORK_DIR/manifest.jsonl, and returns the clips.

    Args:
      work_dir: folder for the output, on this machine.
      tts: template of a text-to-speech command.
      human: folder of a human's prompts, see `human_prompts`; None leaves them out.
      processes: number of commands that run at once.
      more_sentences, short_sentences, answer_voice_sentences: see `planned_clips`.

    Raises:
      UserError: the command fails, or `work_dir` was begun with other arguments or has a manifest
        that `synthesize` didn't write.
    """
    text_to_speech.check_command(tts)
    files.refuse_foreign(work_dir, SETTINGS, "manifest.jsonl")
    prompts = human_prompts(human, HUMAN_PROMPTS) if human else []
    (work_dir / "wavs").mkdir(parents=True, exist_ok=True)
    # Clips of the same id have other texts then.
    settings = {
        "tts": tts,
        "more_sentences": more_sentences,
        "short_sentences": short_sentences,
        "answer_voice_sentences": answer_voice_sentences,
    }
    files.keep_settings(work_dir / SETTINGS, settings)
    planned = planned_clips(more_sentences, short_sentences, answer_voice_sentences)
    with ThreadPoolExecutor(processes) as pool:  # Threads suffice: they wait for the commands.
        synthesized = pool.map(lambda c: synthesize_clip(c, tts, work_dir), planned)
        clips = list(track(synthesized, "speech", total=len(planned)))
    clips += copy_human_prompts(prompts, work_dir)
    write_clips(clips, work_dir / "manifest.jsonl")
    return clips


def print_hours(clips: Iterable[Clip]) -> None:
    """Prints clips and hours of each split, kind and speaker."""
    hours: dict[tuple[str, str, str], list[float]] = {}
    for clip in clips:
        hours.setdefault((clip.split, clip.kind, clip.speaker), []).append(clip.seconds / 3600)
    for (split, kind, speaker), durations in sorted(hours.items()):
        print(f"{split:14} {kind:9} {speaker:15} {len(durations):6} clips {sum(durations):6.2f} h")


# ---- encode ------------------------------------------------------------------------------------


def wav_path(clip: Clip, work_dir: Path) -> str:
    """Full path of a clip's recording; those of further voices may be on a bucket."""
    return manifests.resolve(clip.path, work_dir / "manifest.jsonl")


def encode_clips(clips: list[Clip], work_dir: Path, speech2unit: Speech2Unit) -> dict[str, Units]:
    """Encodes the clips: clip id -> reduced units and durations."""
    encoded = {}
    for start in track(range(0, len(clips), ENCODE_BATCH), "units"):
        batch = clips[start : start + ENCODE_BATCH]
        wavs = [audio.load_audio(wav_path(clip, work_dir)) for clip in batch]
        for clip, cluster_ids in zip(batch, speech2unit.cluster_ids(wavs)):
            encoded[clip.id] = reduce_units(cluster_ids)
    return encoded


def write_units(clips: list[Clip], encoded: dict[str, Units], path: Path) -> None:
    """Writes the manifest with units and durations, the training data of tools.train_vocoder."""
    rows = [manifests.with_units(dataclasses.asdict(clip), *encoded[clip.id]) for clip in clips]
    manifests.write_jsonl(path, rows)


def utterance(clip: Clip, encoded: dict[str, Units]) -> Fields:
    """Record of a clip."""
    units, durations = encoded[clip.id]
    about = {name: getattr(clip, name) for name in ("id", "text", "speaker", "topic", "kind")}
    return about | {"units": units, "durations": durations}


def dialogue(question: Clip, answer: Clip, encoded: dict[str, Units]) -> Fields:
    """Record of a question and its answer."""
    question_units, question_durations = encoded[question.id]
    answer_units, answer_durations = encoded[answer.id]
    return {
        "id": question.id,
        "topic": question.topic,
        "held_out": question.held_out,
        "question": question.text,
        "question_speaker": question.speaker,
        "question_units": question_units,
        "question_durations": question_durations,
        "answer": answer.text,
        "answer_speaker": answer.speaker,
        "answer_units": answer_units,
        "answer_durations": answer_durations,
    }


def serialize(fields: Fields) -> bytes:
    """A tf.train.Example: texts as bytes, arrays as int64 lists."""
    import tensorflow as tf  # Imported here: it takes seconds, and `synthesize` doesn't need it.

    features = {}
    for name, value in fields.items():
        if isinstance(value, str):
            features[name] = tf.train.Feature(bytes_list={"value": [value.encode()]})
        else:
            features[name] = tf.train.Feature(int64_list={"value": value})
    return tf.train.Example(features={"feature": features}).SerializeToString()


def write_records(path: epath.Path, rows: list[Fields]) -> None:
    """Writes the records in random order, so that the first ones are a fair sample."""
    import tensorflow as tf

    with (
        files.whole_file(path) as unfinished,
        tf.io.TFRecordWriter(str(unfinished), options="GZIP") as writer,
    ):
        for fields in random.Random(demo_world.SEED).sample(rows, len(rows)):
            writer.write(serialize(fields))
    print(f"{path.name:38} {len(rows):6} records {path.stat().length / 1e6:6.2f} MB")


def copy_clips(clips: list[Clip], work_dir: Path, folder: epath.Path) -> None:
    """Writes SHIPPED_CLIPS as FLAC, in place of those of an earlier call, and clips.json."""
    old = copied_clips(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in old:
        path.unlink(missing_ok=True)
    rng = random.Random(demo_world.SEED)
    chosen = []
    for (split, kind), count in SHIPPED_CLIPS.items():
        members = [c for c in clips if (c.split, c.kind) == (split, kind) and c.seconds <= 5]
        chosen += sorted(rng.sample(members, min(count, len(members))), key=lambda c: c.id)
    rows = [
        {"file": f"{clip.id}.flac"}
        | {name: getattr(clip, name) for name in ("text", "speaker", "kind", "answer")}
        for clip in chosen
    ]
    # Before the recordings: after a kill they are known to be ours.
    files.write_text(folder / "clips.json", json.dumps(rows, indent=1) + "\n")
    for clip, row in zip(chosen, rows):
        audio.save_audio(folder / row["file"], audio.load_audio(wav_path(clip, work_dir)))


def copied_clips(folder: epath.Path) -> list[epath.Path]:
    """Recordings that an earlier call of `copy_clips` wrote: those that clips.json names.

    Raises:
      UserError: the folder has other FLAC files or another clips.json, which might be replaced.
    """
    table = folder / "clips.json"
    recordings = [folder / name for name in files.names_in(folder) if name.endswith(".flac")]
    named = set()
    if table.exists():
        try:
            rows = json.loads(table.read_bytes())
            named = {row["file"] for row in rows}
            is_ours = isinstance(rows, list)
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise UserError(f"{table} is not of an earlier run; name another folder as --output.")
    foreign = [path for path in recordings if path.name not in named]
    if foreign:
        raise UserError(f"{foreign[0]} is not of an earlier run; name another folder as --output.")
    return recordings


def voices_clips(folder: files.Path) -> list[Clip]:
    """Clips of the recordings that tools.record_voices wrote to `folder`, for training.

    Raises:
      UserError: there are none, or a row lacks something.
    """
    topics = {sentence.text: sentence.topic for sentence in demo_world.all_sentences()}
    manifest = epath.Path(folder) / many_voices.MANIFEST
    clips = []
    rows = manifests.read_rows(manifest, ("path", "text", "speaker"))
    if not rows:
        raise UserError(f"{manifest} has no rows; expected one per recording.")
    for row in rows:
        name, text, speaker = (str(row.fields[field]) for field in ("path", "text", "speaker"))
        topic = topics.get(text)
        if topic is None:  # A further sentence of the world, or a quotation of WordNet.
            topic = demo_world.FREE_ORDER if demo_world.is_free_order(text) else QUOTATIONS
        path = manifests.resolve(name, manifest)
        path = path if files.is_remote(path) else os.path.abspath(path)
        clips.append(Clip(name, path, text, speaker, "train", "plain", topic))
    return clips


def encode(
    work_dir: Path, speech2unit: Speech2Unit, output: files.Path, voices: files.Path | None = None
) -> None:
    """Writes records of all splits and the shipped clips to `output`, and WORK_DIR/units.jsonl.

    Args:
      work_dir: folder that `synthesize` filled, on this machine.
      speech2unit: the encoder.
      output: folder of the records.
      voices: folder of further recordings for training, see `voices_clips`.

    Raises:
      UserError: a manifest or a recording is missing, a manifest is malformed, a text of the test
        would be in the training data, or a file that is not of an earlier run would be replaced;
        raised before anything is encoded.
    """
    output = epath.Path(output)
    clips = read_clips(work_dir / "manifest.jsonl")
    more = voices_clips(voices) if voices else []
    check_no_leakage(clips + more)
    by_id = {clip.id: clip for clip in clips}
    if len(by_id.keys() | {clip.id for clip in more}) < len(clips + more):
        raise UserError("two recordings have the same name; name each once in the manifests.")
    manifests.check_recordings({"path": wav_path(clip, work_dir)} for clip in clips + more)
    files.refuse_foreign(work_dir, SETTINGS, "units.jsonl")
    copied_clips(output / "clips")
    encoded = encode_clips(clips + more, work_dir, speech2unit)
    # The vocoder is to speak with the corpus's voices only.
    write_units(clips, encoded, work_dir / "units.jsonl")
    clips += more
    output.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        members = [clip for clip in clips if clip.split == split]
        rows = [utterance(clip, encoded) for clip in members]
        write_records(output / f"utterances-{split}.tfrecord.gz", rows)
        questions = [clip for clip in members if clip.kind == "question"]
        if questions:
            rows = [dialogue(clip, by_id[clip.answer_id], encoded) for clip in questions]
            write_records(output / f"dialogues-{split}.tfrecord.gz", rows)
    copy_clips(clips, work_dir, output / "clips")
