"""Recordings of many synthetic voices, to teach a speech encoder what they have in common.

Voices of flite as they are and at other pitches and speeds, variants of espeak-ng, and mixtures of
Kokoro's voices speak random texts. A recording of another voice names a reference: the same text
in a voice of flite whose units are to stay as they are. `hubert_targets` takes the targets from it.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath
from rich.progress import track

from speechgpt_jax import manifests
from speechgpt_jax.corpus import text_to_speech
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import names_in
from speechgpt_jax.speech.audio import save_audio

FLITE_VOICES = ("slt", "rms", "kal16")
REFERENCE_VOICE = "slt"
# Variants of espeak-ng. Others are left to tests: f2, m3, klatt2, Andrea, Michael.
ESPEAK_VARIANTS = (
    *("f1", "f3", "f4", "f5", "m1", "m2", "m4", "m5", "m6", "m7", "m8", "Alex", "Annie", "Alicia"),
    *("Andy", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "Denis", "ed"),
    *("edward", "Gene", "gustave", "Henrique", "Hugo", "iven", "Jacky", "john", "Lee", "linda"),
    *("marcelo", "Marco", "Mario", "max", "Mike", "miguel", "pablo", "paul", "pedro", "quincy"),
    *("rob", "robert", "steph", "Storm", "zac", "anika", "grandpa", "grandma", "klatt", "klatt3"),
    *("klatt4", "norbert", "sandro", "shelby", "travis", "victor"),
)
PITCHED = (
    "flite -voice {speaker} -t {text} -o {wav} --setf int_f0_target_mean=%d"
    " --setf int_f0_target_stddev=%d --setf duration_stretch=%.2f"
)
ESPEAK = "espeak-ng -v en-us+{speaker} -s %d -p %d -w {wav} -- {text}"
MANIFEST = "manifest.jsonl"
# A recording's file: kind, number, digest of what it is made of.
_FILE = re.compile(r"(plain|pitched|espeak|kokoro)-\d{5}-[0-9a-f]{8}\.wav")


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording to be made.

    Attributes:
      name: name of its file, without the suffix.
      text: what is said.
      speaker: name in the manifest.
      voice: name of the command's voice, or {voice of Kokoro: weight} of a mixture.
      template: template of the text-to-speech command; None: Kokoro.
      speed: Kokoro's speed; 1 is its own.
      reference: name of the recording of the same text whose features are the targets.
    """

    name: str
    text: str
    speaker: str
    voice: str | dict[str, float]
    template: str | None = text_to_speech.FLITE
    speed: float = 1.0
    reference: str | None = None


def plan(
    texts: Sequence[Sequence[str]],
    *,
    plain: int,
    pitched: int,
    espeak: int,
    kokoro: int,
    kokoro_voices: Sequence[str] = (),
    kokoro_voice: str | None = None,
    seed: int = 0,
) -> list[Recording]:
    """Recordings to be made, references included.

    Args:
      texts: groups of texts, drawn equally often.
      plain: number of recordings by flite's voices as they are, without reference.
      pitched: number of recordings by flite's voices at other pitches and speeds.
      espeak: number of recordings by variants of espeak-ng.
      kokoro: number of recordings by mixtures of Kokoro's voices, at different speeds.
      kokoro_voices: Kokoro's voices.
      kokoro_voice: one of them, for recordings by that voice instead of mixtures.
      seed: seed of all choices.

    Raises:
      UserError: no recording is wanted, or Kokoro has no such voice.
    """
    if not plain + pitched + espeak + kokoro:
        raise UserError("no recording is wanted; give at least one kind a number.")
    if kokoro_voice and kokoro_voice not in kokoro_voices:
        known = ", ".join(kokoro_voices) or "none without its folder"
        raise UserError(f"Kokoro has no voice {kokoro_voice!r}; it has {known}.")
    rng = np.random.default_rng(seed)
    recordings = []

    def draw(sequence: Sequence):
        return sequence[int(rng.integers(len(sequence)))]

    def add(kind: str, speaker: str, reference_voice: str | None, **fields) -> None:
        text = draw(draw(texts))
        # The same name stands for the same recording, whatever else a call asks for.
        digest = hashlib.sha256(repr((text, speaker, sorted(fields.items()))).encode()).hexdigest()
        name = f"{kind}-{len(recordings):05d}-{digest[:8]}"
        reference = None
        if reference_voice:
            reference = f"{name}-{reference_voice}"
            recordings.append(Recording(reference, text, reference_voice, reference_voice))
        recordings.append(Recording(name, text, speaker, reference=reference, **fields))

    for _ in range(plain):
        voice = draw(FLITE_VOICES)
        add("plain", voice, None, voice=voice)
    for _ in range(pitched):
        voice = draw(FLITE_VOICES)
        f0, deviation, stretch = rng.uniform(75, 270), rng.uniform(3, 45), rng.uniform(0.75, 1.3)
        template = PITCHED % (f0, deviation, stretch)
        add("pitched", f"{voice}-pitched", voice, voice=voice, template=template)
    for _ in range(espeak):
        voice = draw(ESPEAK_VARIANTS)
        template = ESPEAK % (rng.uniform(120, 210), rng.uniform(20, 80))
        add("espeak", f"espeak-{voice}", REFERENCE_VOICE, voice=voice, template=template)
    for _ in range(kokoro):
        if kokoro_voice:
            fields = {"voice": {kokoro_voice: 1.0}, "template": None}
        else:
            mixture, speed = draw_mixture(kokoro_voices, rng), rng.uniform(0.8, 1.3)
            fields = {"voice": mixture, "speed": round(float(speed), 2), "template": None}
        add("kokoro", kokoro_voice or "kokoro", REFERENCE_VOICE, **fields)
    return recordings


def draw_mixture(voices: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    """Weights of three voices, of which at most one is negative; their sum is 1."""
    first, second, third = rng.permutation(voices)[:3]
    weight, share = rng.uniform(-0.25, 1.25), rng.uniform()
    rest = 1 - weight
    weights = {first: weight, second: rest * share, third: rest * (1 - share)}
    return {str(voice): round(float(weight), 3) for voice, weight in weights.items()}


def record(
    recordings: Sequence[Recording],
    output: str | os.PathLike,
    kokoro: Callable[..., np.ndarray] | None,
    processes: int,
) -> list[dict]:
    """Writes the recordings that don't exist yet, and the manifest; returns its rows.

    Raises:
      UserError: a text-to-speech program is missing or fails, or the folder has a manifest of other
        recordings.
    """
    output = epath.Path(output)
    _refuse_foreign(output / MANIFEST)
    paths = {recording.name: output / f"{recording.name}.wav" for recording in recordings}
    # One look at the folder: on a bucket, every question takes a request.
    found = set(names_in(output))
    missing = [recording for recording in recordings if paths[recording.name].name not in found]
    for template in {recording.template for recording in missing if recording.template}:
        text_to_speech.check_command(template)
    with ThreadPoolExecutor(processes) as pool:
        by_command = [recording for recording in missing if recording.template]
        made = pool.map(
            lambda r: text_to_speech.synthesize(r.template, r.voice, r.text, paths[r.name]),
            by_command,
        )
        for _ in track(made, "commands", total=len(by_command)):
            pass

        def speak(recording: Recording) -> None:
            assert kokoro, "recordings by Kokoro need its model"
            wav = kokoro(recording.text, recording.voice, recording.speed)
            save_audio(paths[recording.name], np.clip(wav, -1, 1))

        by_kokoro = [recording for recording in missing if not recording.template]
        for _ in track(pool.map(speak, by_kokoro), "Kokoro", total=len(by_kokoro)):
            pass
    references = {recording.reference for recording in recordings}
    rows = [
        {"path": paths[r.name].name, "text": r.text, "speaker": r.speaker, "split": "train"}
        | ({"reference": paths[r.reference].name} if r.reference else {})
        for r in recordings
        if r.name not in references
    ]
    manifests.write_jsonl(output / MANIFEST, rows)
    return rows


def _refuse_foreign(manifest: epath.Path) -> None:
    """Raises a UserError if the manifest exists and isn't one of `record`."""
    rows = manifests.read_rows(manifest) if manifest.exists() else []
    if not all(_FILE.fullmatch(str(row.fields.get("path"))) for row in rows):
        raise UserError(
            f"{manifest} exists and is not of an earlier run; name another folder as --output."
        )
