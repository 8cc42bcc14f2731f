"""The clips of the corpus: which text is spoken by which voice, for training or for the test."""

import dataclasses
import random
from collections.abc import Iterable
from pathlib import Path

from speechgpt_jax import manifests
from speechgpt_jax.demo_world import world as demo_world
from speechgpt_jax.errors import UserError

TRAIN_VOICES = ("slt", "rms", "kal16")
ANSWER_VOICE = "slt"
UNHEARD_VOICE = "awb"
SECOND_VOICE_SHARE = 0.05  # share of training texts synthesized with two voices
SPLITS = ("train", "test", "unheard_voice", "human")
# Suffix of the speaker of a perturbed clip: whatever selects the clips of `slt`, such as the
# training of a vocoder, then leaves the perturbed ones out.
PERTURBED = " perturbed"


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

    @property
    def voice(self) -> str:
        """The voice of the text-to-speech command."""
        return self.speaker.removesuffix(PERTURBED)


def make_clip(
    kind: str, number: int, text: str, speaker: str, split: str, topic: str, **more
) -> Clip:
    """The clip of text number `number` of its kind; `more` are its other fields."""
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
      more_sentences: number of further sentences in free word order for training, each as one clip
        whose speed, room and microphone are changed; the other clips stay the same.
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
        make_clip("answer", i, d.answer, ANSWER_VOICE, d.split, d.topic)
        for i, d in enumerate(first_with_answer.values())
    ]
    answer_ids = {clip.text: clip.id for clip in clips}
    for i, d in enumerate(dialogues):
        for split, voice in _voices(d.split, rng):
            clip = make_clip(
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
    for i, sentence in enumerate(sentences):
        if sentence.part == demo_world.ALWAYS:
            voices = _voices(sentence.split, rng)
        elif sentence.part == demo_world.FOR_ANSWER_VOICE:
            voices = [("train", ANSWER_VOICE)]
        else:
            voices = [("train", rng.choice(TRAIN_VOICES))]
        for split, voice in voices:
            clip = make_clip("plain", i, sentence.text, voice, split, sentence.topic)
            if sentence.part == demo_world.MORE:
                clip = dataclasses.replace(clip, speaker=voice + PERTURBED, perturbation=i)
            clips.append(clip)
    check_no_leakage(clips)
    return clips


def check_no_leakage(clips: list[Clip]) -> None:
    """Raises a UserError if training has a text or a held-out combination of the test."""
    taught = {clip.text for clip in clips if clip.split == "train"}
    texts = {clip.text for clip in clips if clip.split != "train"} & taught
    questions = demo_world.questions()
    held_out = {d.combination for d in questions if d.held_out == "combination"}
    combinations = {d.combination for d in questions if d.split == "train"} & held_out
    if texts or combinations:
        found = sorted(map(str, texts | combinations))[:3]
        raise UserError(f"the test data would be in the training data: {found}; leave them out.")


def write_clips(clips: Iterable[Clip], path: Path) -> None:
    """Writes the clips as JSONL."""
    manifests.write_jsonl(path, map(dataclasses.asdict, clips))


def read_clips(path: Path) -> list[Clip]:
    """The clips of a manifest that `write_clips` wrote.

    Raises:
      UserError: there is no manifest, it has no rows, or a row is not a clip.
    """
    if not path.exists():
        raise UserError(f"no {path}; run the step `synthesize` with the same --work_dir first.")
    clips = []
    for row in manifests.read_rows(
        path, ("id", "path", "text", "speaker", "split", "kind", "topic")
    ):
        try:
            clip = Clip(**row.fields)
        except TypeError as error:
            raise UserError(f"{row.place}: not a clip ({error}).") from error
        if clip.split not in SPLITS:
            raise UserError(f"{row.place}: split {clip.split!r} is none of {', '.join(SPLITS)}.")
        if isinstance(clip.seconds, bool) or not isinstance(clip.seconds, int | float):
            raise UserError(f"{row.place}: seconds {clip.seconds!r} is no number.")
        clips.append(clip)
    if not clips:
        raise UserError(f"{path} has no rows; expected one per clip.")
    known = {clip.id for clip in clips}
    for clip in clips:
        if clip.kind == "question" and clip.answer_id not in known:
            raise UserError(
                f"{path}: {clip.id} has the answer {clip.answer_id!r}, which isn't there."
            )
    return clips
