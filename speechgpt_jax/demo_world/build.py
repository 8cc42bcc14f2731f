"""Builds the shipped corpus: synthesizes clips of the demo world, then encodes them as records.

The command is tools.build_demo_corpus.
"""

import dataclasses
import gzip
import json
import random
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import track

from speechgpt_jax import files
from speechgpt_jax.corpus import many_voices, text_to_speech
from speechgpt_jax.corpus.g722 import G722_BYTES_PER_SECOND, decode_g722
from speechgpt_jax.corpus.perturb_units import perturb
from speechgpt_jax.demo_world import words as demo_words
from speechgpt_jax.demo_world import world as demo_world
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech import audio
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.unit_text import reduce_units

SHIPPED_CORPUS = files.ASSETS / "corpus"
TRAIN_VOICES = ("slt", "rms", "kal16")
ANSWER_VOICE = "slt"
UNHEARD_VOICE = "awb"
HUMAN = "human"
HUMAN_PROMPTS = 140
SECOND_VOICE_SHARE = 0.05  # share of training texts synthesized with two voices
SPLITS = ("train", "test", "unheard_voice", "human")
# (split, kind) -> number of recordings shipped as FLAC.
SHIPPED_CLIPS = {
    ("test", "question"): 12,
    ("unheard_voice", "question"): 6,
    ("test", "plain"): 6,
    ("unheard_voice", "plain"): 3,
    ("human", "prompt"): 15,
}
ENCODE_BATCH = 256  # clips
# Speeds of perturbed clips are drawn from [1 / MAX_SPEED, MAX_SPEED].
MAX_SPEED = 1.15

Units = tuple[np.ndarray, np.ndarray]  # reduced units [N], durations [N] in frames of 20 ms
Fields = dict[str, str | np.ndarray]  # of one record


@dataclasses.dataclass(frozen=True)
class Clip:
    """One row of manifest.jsonl; clips of questions have the id of their answer's clip."""

    id: str
    path: str  # under the work directory
    text: str
    speaker: str
    split: str  # train | test | unheard_voice | human
    kind: str  # question | answer | plain | prompt
    topic: str
    seconds: float = 0.0
    answer: str = ""
    answer_id: str = ""
    wording: str = ""
    fact: str = ""
    held_out: str = ""
    perturbation: int | None = None  # seed of another speed, room and microphone; None: as it is


def _clip(kind: str, number: int, text: str, speaker: str, split: str, topic: str, **more) -> Clip:
    name = f"{kind}-{number:05d}-{speaker}"
    return Clip(name, f"wavs/{name}.wav", text, speaker, split, kind, topic, **more)


def _voices(split: str, rng: random.Random) -> list[tuple[str, str]]:
    """(split, voice) of each clip of one text."""
    if split == "test":
        return [("test", rng.choice(TRAIN_VOICES)), ("unheard_voice", UNHEARD_VOICE)]
    count = 2 if rng.random() < SECOND_VOICE_SHARE else 1
    return [("train", voice) for voice in rng.sample(TRAIN_VOICES, count)]


def planned_clips(
    more_sentences: int = 0, short_sentences: int = 0, answer_voice_sentences: int = 0
) -> list[Clip]:
    """The clips of all synthetic voices; every call returns the same.

    Args:
      more_sentences: number of further sentences in free word order for training, each as one
        perturbed clip; the other clips stay the same.
      short_sentences: number of strings of 1 to 3 words for training.
      answer_voice_sentences: number of further sentences in free word order for training, in the
        voice of the answers.

    Raises:
      UserError: a text or a combination of the test would be in the training data.
    """
    rng = random.Random(demo_world.SEED)
    dialogues = demo_world.questions()
    first_with_answer = {}
    for dialogue in dialogues:
        first_with_answer.setdefault(dialogue.answer, dialogue)
    clips = [
        _clip("answer", i, d.answer, ANSWER_VOICE, d.split, d.topic)
        for i, d in enumerate(first_with_answer.values())
    ]
    answer_ids = {clip.text: clip.id for clip in clips}
    for i, d in enumerate(dialogues):
        for split, voice in _voices(d.split, rng):
            clip = _clip(
                "question",
                i,
                d.question,
                voice,
                split,
                d.topic,
                answer=d.answer,
                answer_id=answer_ids[d.answer],
                wording=d.wording,
                fact=d.fact,
                held_out=d.held_out,
            )
            clips.append(clip)
    sentences = demo_world.plain_sentences(more_sentences, short_sentences, answer_voice_sentences)
    first_more = len(demo_world.plain_sentences())
    first_short = first_more + more_sentences
    first_of_answer_voice = len(demo_world.plain_sentences(more_sentences, short_sentences))
    for i, sentence in enumerate(sentences):
        if i < first_more:
            voices = _voices(sentence.split, rng)
        elif i >= first_of_answer_voice:
            voices = [("train", ANSWER_VOICE)]
        else:
            voices = [("train", rng.choice(TRAIN_VOICES))]
        perturbation = i if first_more <= i < first_short else None
        for split, voice in voices:
            clip = _clip("plain", i, sentence.text, voice, split, sentence.topic)
            clips.append(dataclasses.replace(clip, perturbation=perturbation))
    _check_no_leakage(clips)
    return clips


def _check_no_leakage(clips: list[Clip]) -> None:
    """Raises a UserError if training has a text or a held-out combination of the test."""
    taught = {clip.text for clip in clips if clip.split == "train"}
    texts = {clip.text for clip in clips if clip.split != "train"} & taught
    questions = demo_world.questions()
    held_out = {d.combination for d in questions if d.held_out == "combination"}
    combinations = {d.combination for d in questions if d.split == "train"} & held_out
    if texts or combinations:
        found = sorted(map(str, texts | combinations))[:3]
        raise UserError(f"the test data would be in the training data: {found}; leave them out.")


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
        text_to_speech.synthesize(template, clip.speaker, clip.text, plain)
        if clip.perturbation is not None:
            rng = np.random.default_rng(clip.perturbation)
            speed = MAX_SPEED ** rng.uniform(-1, 1)
            audio.save_audio(path, perturb(audio.load_audio(plain), speed, rng))
            plain.unlink()
    info = soundfile.info(path)
    if info.samplerate != SAMPLE_RATE or info.channels != 1:
        raise UserError(
            f"{path} has {info.samplerate} Hz and {info.channels} channels; the corpus needs "
            f"{SAMPLE_RATE} Hz mono: let the --tts command convert it."
        )
    return dataclasses.replace(clip, seconds=round(info.duration, 3))


# ---- recordings of a human ---------------------------------------------------------------------


def prompt_text(transcript: str) -> str:
    """ "Press 7 to delete this message." -> "press seven to delete this message."

    Returns "" for transcripts with symbols, abbreviations, single letters or numbers above nine.
    """
    text = transcript.strip(" .\n")
    if re.search(r"[^A-Za-z0-9 ,.!?']|\d\d|\d\.\d|\.\.|[A-Z]{2}|\b[B-HJ-Zb-z]\b", text):
        return ""
    text = re.sub(r"\d", lambda digit: demo_words.ONES[int(digit[0])], text.lower())
    text = re.sub(r"\s+", " ", text.replace("!", ".")).rstrip(".")
    return text if text.endswith("?") else text + "."


def human_prompts(folder: Path, count: int) -> list[tuple[Path, str]]:
    """(G.722 file, text) of at most `count` sentences of 1.5 to 8 seconds under `folder`.

    Raises:
      UserError: `folder` doesn't hold the packages.
    """
    transcripts = sorted(folder.rglob("core-sounds-en.txt.gz"))
    if not transcripts:
        raise UserError(
            f"--human_prompts={folder} holds no core-sounds-en.txt.gz; unpack Debian's "
            "asterisk-core-sounds-en and asterisk-core-sounds-en-g722 there with `dpkg-deb -x`."
        )
    recordings = {path.stem: path for path in sorted(folder.rglob("*.g722"))}
    found = {}
    for line in gzip.decompress(transcripts[0].read_bytes()).decode().split("\n"):
        name, _, transcript = line.partition(": ")
        path, text = recordings.get(name), prompt_text(transcript)
        if not path or len(text.split()) < 4 or "represenatives" in text:  # sic
            continue
        if 1.5 <= path.stat().st_size / G722_BYTES_PER_SECOND <= 8:
            found.setdefault(text.strip(".?"), (path, text))
    chosen = random.Random(demo_world.SEED).sample(sorted(found), min(count, len(found)))
    return [found[text] for text in sorted(chosen)]


def copy_human_prompts(prompts: list[tuple[Path, str]], work_dir: Path) -> list[Clip]:
    """Writes the wavs of a human's prompts and returns their clips."""
    clips = []
    for i, (path, text) in enumerate(prompts):
        wav = decode_g722(path)
        clip = _clip("prompt", i, text, HUMAN, "human", "prompts", seconds=len(wav) / SAMPLE_RATE)
        audio.save_audio(work_dir / clip.path, wav)
        clips.append(clip)
    return clips


# ---- synthesize --------------------------------------------------------------------------------


def write_manifest(clips: Iterable[Clip], path: Path) -> None:
    """Writes the clips as JSONL."""
    files.write_jsonl(path, map(dataclasses.asdict, clips))


def read_manifest(path: Path) -> list[Clip]:
    """The clips that `synthesize` wrote.

    Raises:
      UserError: there is no manifest, or a row is not a clip.
    """
    if not path.exists():
        raise UserError(f"no {path}; run the step `synthesize` with the same --work_dir first.")
    clips = []
    for row in files.read_rows(path, ("id", "path", "text", "speaker", "split", "kind", "topic")):
        try:
            clip = Clip(**row.fields)
        except TypeError as error:
            raise UserError(f"{row.place}: not a clip ({error}).") from error
        if clip.split not in SPLITS:
            raise UserError(f"{row.place}: split {clip.split!r} is none of {', '.join(SPLITS)}.")
        if isinstance(clip.seconds, bool) or not isinstance(clip.seconds, int | float):
            raise UserError(f"{row.place}: seconds {clip.seconds!r} is no number.")
        clips.append(clip)
    known = {clip.id for clip in clips}
    for clip in clips:
        if clip.kind == "question" and clip.answer_id not in known:
            raise UserError(
                f"{path}: {clip.id} has the answer {clip.answer_id!r}, which isn't there."
            )
    return clips


def synthesize(
    work_dir: Path,
    tts: str,
    human: Path | None,
    processes: int,
    more_sentences: int = 0,
    short_sentences: int = 0,
    answer_voice_sentences: int = 0,
) -> list[Clip]:
    """Writes the wavs of all clips and WORK_DIR/manifest.jsonl, and returns the clips.

    Args:
      work_dir: folder for the output.
      tts: template of a text-to-speech command.
      human: folder of a human's prompts, see `human_prompts`; None leaves them out.
      processes: number of commands that run at once.
      more_sentences, short_sentences, answer_voice_sentences: see `planned_clips`.

    Raises:
      UserError: the command fails, or `work_dir` was begun with other arguments.
    """
    text_to_speech.check_command(tts)
    prompts = human_prompts(human, HUMAN_PROMPTS) if human else []
    (work_dir / "wavs").mkdir(parents=True, exist_ok=True)
    # Clips of the same id have other texts then.
    settings = {
        "tts": tts,
        "more_sentences": more_sentences,
        "short_sentences": short_sentences,
        "answer_voice_sentences": answer_voice_sentences,
    }
    files.keep_settings(work_dir / "settings.json", settings)
    planned = planned_clips(more_sentences, short_sentences, answer_voice_sentences)
    with ThreadPoolExecutor(processes) as pool:  # Threads suffice: they wait for the commands.
        synthesized = pool.map(lambda c: synthesize_clip(c, tts, work_dir), planned)
        clips = list(track(synthesized, "speech", total=len(planned)))
    clips += copy_human_prompts(prompts, work_dir)
    write_manifest(clips, work_dir / "manifest.jsonl")
    return clips


def print_hours(clips: Iterable[Clip]) -> None:
    """Prints clips and hours of each split, kind and speaker."""
    hours: dict[tuple[str, str, str], list[float]] = {}
    for clip in clips:
        hours.setdefault((clip.split, clip.kind, clip.speaker), []).append(clip.seconds / 3600)
    for (split, kind, speaker), durations in sorted(hours.items()):
        print(f"{split:14} {kind:9} {speaker:6} {len(durations):6} clips {sum(durations):6.2f} h")


# ---- encode ------------------------------------------------------------------------------------


def encode_clips(clips: list[Clip], work_dir: Path, speech2unit: Speech2Unit) -> dict[str, Units]:
    """Encodes the clips: clip id -> reduced units and durations."""
    encoded = {}
    for start in track(range(0, len(clips), ENCODE_BATCH), "units"):
        batch = clips[start : start + ENCODE_BATCH]
        wavs = [audio.load_audio(work_dir / clip.path) for clip in batch]
        for clip, cluster_ids in zip(batch, speech2unit.cluster_ids(wavs)):
            encoded[clip.id] = reduce_units(cluster_ids)
    return encoded


def write_units(clips: list[Clip], encoded: dict[str, Units], path: Path) -> None:
    """Writes the manifest with units and durations, the training data of tools.train_vocoder."""
    rows = []
    for clip in clips:
        units, durations = (values.tolist() for values in encoded[clip.id])
        rows.append(dataclasses.asdict(clip) | {"units": units, "durations": durations})
    files.write_jsonl(path, rows)


def utterance(clip: Clip, encoded: dict[str, Units]) -> Fields:
    """Record of a clip."""
    units, durations = encoded[clip.id]
    about = {name: getattr(clip, name) for name in ("id", "text", "speaker", "topic", "kind")}
    if (
        clip.perturbation is not None
    ):  # Tasks that choose a speaker, such as demo_tts, must not get it.
        about["speaker"] += " perturbed"
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


def write_records(path: Path, rows: list[Fields]) -> None:
    """Writes the records in random order, so that the first ones are a fair sample."""
    import tensorflow as tf

    with (
        files.whole_file(path) as unfinished,
        tf.io.TFRecordWriter(str(unfinished), options="GZIP") as writer,
    ):
        for fields in random.Random(demo_world.SEED).sample(rows, len(rows)):
            writer.write(serialize(fields))
    print(f"{path.name:38} {len(rows):6} records {path.stat().st_size / 1e6:6.2f} MB")


def copy_clips(clips: list[Clip], work_dir: Path, folder: Path) -> None:
    """Writes SHIPPED_CLIPS as FLAC, and clips.json with their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.flac"):
        old.unlink()
    rng = random.Random(demo_world.SEED)
    rows = []
    for (split, kind), count in SHIPPED_CLIPS.items():
        members = [c for c in clips if (c.split, c.kind) == (split, kind) and c.seconds <= 5]
        for clip in sorted(rng.sample(members, min(count, len(members))), key=lambda c: c.id):
            audio.save_audio(folder / f"{clip.id}.flac", audio.load_audio(work_dir / clip.path))
            row = {name: getattr(clip, name) for name in ("text", "speaker", "kind", "answer")}
            rows.append({"file": f"{clip.id}.flac"} | row)
    files.write_text(folder / "clips.json", json.dumps(rows, indent=1) + "\n")


def voices_clips(folder: Path) -> list[Clip]:
    """Clips of the recordings that tools.record_voices wrote to `folder`, for training.

    Raises:
      UserError: there are none, or a row lacks something.
    """
    topics = {sentence.text: sentence.topic for sentence in demo_world.all_sentences()}
    manifest = folder / many_voices.MANIFEST
    clips = []
    rows = files.read_rows(manifest, ("path", "text", "speaker"))
    if not rows:
        raise UserError(f"{manifest} has no rows; expected one per recording.")
    for row in rows:
        name, text, speaker = (str(row.fields[field]) for field in ("path", "text", "speaker"))
        # The world's further sentences are all in free order.
        topic = topics.get(text, demo_world.FREE_ORDER)
        path = str((folder / name).absolute())
        clips.append(Clip(name, path, text, speaker, "train", "plain", topic))
    return clips


def encode(
    work_dir: Path, speech2unit: Speech2Unit, output: Path, voices: Path | None = None
) -> None:
    """Writes records of all splits and the shipped clips to `output`, and WORK_DIR/units.jsonl.

    Args:
      work_dir: folder that `synthesize` filled.
      speech2unit: the encoder.
      output: folder of the records.
      voices: folder of further recordings for training, see `voices_clips`.

    Raises:
      UserError: a manifest is missing or malformed, or a text of the test would be in the
        training data.
    """
    clips = read_manifest(work_dir / "manifest.jsonl")
    more = voices_clips(voices) if voices else []
    _check_no_leakage(clips + more)
    by_id = {clip.id: clip for clip in clips}
    if len(by_id.keys() | {clip.id for clip in more}) < len(clips + more):
        raise UserError("two recordings have the same name; name each once in the manifests.")
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
