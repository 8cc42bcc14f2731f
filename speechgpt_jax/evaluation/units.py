"""Information about phones in units, for seen voices, an unseen voice and a human.

Units and phones of a recording are compared frame by frame, 50 per second.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from rich.progress import track

from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import check_fields, check_recordings, is_perturbed
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.mfcc import mfcc
from speechgpt_jax.speech.phones import PocketsphinxAligner, flite_phones, frame_phones
from speechgpt_jax.speech.recordings import FRAMES_PER_SECOND, num_frames
from speechgpt_jax.unit_text import reduce_units

# Group of recordings -> its split of the manifest. The map from units to phones is learned on FIT;
# PNMI and units per second are measured on SEEN: other texts, the same voices.
FIT, SEEN = "fit", "seen voices"
# The group whose phones are aligned; the phones of the others come from flite, which spoke them.
HUMAN_GROUP = "human"
GROUPS = {FIT: "train", SEEN: "test", "unseen voice": "unheard_voice", HUMAN_GROUP: "human"}

ByGroup = dict[str, list[np.ndarray]]  # group -> one array per clip


@dataclasses.dataclass(frozen=True)
class UnitScore:
    """Result of `score`.

    Attributes:
      pnmi: phone-normalised mutual information (Hsu et al. 2021): the share of the phones' entropy
        that the units explain.
      units_per_second: reduced units (repeats removed) per second of audio.
      accuracy: group -> share of its frames whose phone is the most frequent phone of their unit
        in the group FIT.
    """

    pnmi: float
    units_per_second: float
    accuracy: dict[str, float]


def score(units: ByGroup, phones: ByGroup, num_units: int) -> UnitScore:
    """Scores units [T] against phones [T]; both have the same groups, clips and frames."""
    all_units = {group: np.concatenate(clips) for group, clips in units.items()}
    all_phones = {group: np.concatenate(clips) for group, clips in phones.items()}
    phone_of_unit = most_frequent_phone(all_units[FIT], all_phones[FIT], num_units)
    reduced = sum(len(reduce_units(clip)[0]) for clip in units[SEEN])
    return UnitScore(
        pnmi(all_units[SEEN], all_phones[SEEN]),
        reduced / (len(all_units[SEEN]) / FRAMES_PER_SECOND),
        {
            group: float((phone_of_unit[all_units[group]] == all_phones[group]).mean())
            for group in units
            if group != FIT
        },
    )


def pnmi(units: np.ndarray, phones: np.ndarray) -> float:
    """I(unit; phone) / H(phone) of units [T] and phones [T], both numbered from 0.

    Raises:
      UserError: there is only one phone, whose entropy is 0.
    """
    joint = np.zeros((units.max() + 1, phones.max() + 1))
    np.add.at(joint, (units, phones), 1)
    joint /= joint.sum()
    p_phone = joint.sum(0, keepdims=True)
    independent = joint.sum(1, keepdims=True) * p_phone
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / independent[seen])).sum()
    entropy = -(p_phone[p_phone > 0] * np.log(p_phone[p_phone > 0])).sum()
    if entropy == 0:
        raise UserError("all frames have the same phone; PNMI needs recordings of several phones.")
    return float(information / entropy)


def most_frequent_phone(units: np.ndarray, phones: np.ndarray, num_units: int) -> np.ndarray:
    """Most frequent phone of each unit, [num_units]; -1 for a unit that doesn't occur.

    [0, 0, 0, 2], [5, 5, 4, 1], 3 -> [5, -1, 1]
    """
    counts = np.zeros((num_units, phones.max() + 1), int)
    np.add.at(counts, (units, phones), 1)
    return np.where(counts.any(1), counts.argmax(1), -1)


def choose_rows(rows: list[dict], count: int) -> dict[str, list[dict]]:
    """Group -> at most `count` random rows of its split; groups without rows are left out.

    Raises:
      UserError: there are no rows of FIT or of SEEN, or a row has no `text` or no `speaker`.
    """
    by_group = {
        # flite's times are not those of a recording whose speed was changed.
        group: [row for row in rows if row.get("split") == split and not is_perturbed(row)]
        for group, split in GROUPS.items()
    }
    for group in (FIT, SEEN):
        if not by_group[group]:
            raise UserError(
                f"the manifest has no rows of split {GROUPS[group]!r}; eval_units needs some."
            )
    rng, chosen = np.random.default_rng(0), {}
    for group, group_rows in by_group.items():
        if group_rows:
            chosen[group] = [group_rows[i] for i in rng.permutation(len(group_rows))[:count]]
    for group_rows in chosen.values():
        check_fields(group_rows, ("text", "speaker"))
    return chosen


def load_labelled(rows: Mapping[str, list[dict]]) -> tuple[ByGroup, ByGroup, int]:
    """Reads the recordings of each group and finds their phones.

    Args:
      rows: rows of each group, with `path`, `text`, `split` and `speaker`: a voice of flite, except
        for humans.

    Returns:
      clips float32 [S] of each group, their phones [T] as numbers, and the number of phones.
      Recordings whose phones are not found are left out.

    Raises:
      UserError: a recording is missing, or none of a group is left.
    """
    for group_rows in rows.values():
        check_recordings(group_rows)
    numbers, clips, phones = {}, {}, {}
    # Made first: PocketSphinx may not be installed.
    align = PocketsphinxAligner() if HUMAN_GROUP in rows else None
    for group, group_rows in rows.items():
        clips[group], phones[group] = [], []
        for row in track(group_rows, description=f"phones, {group}"):
            wav = load_audio(row["path"])
            if align and group == HUMAN_GROUP:
                found = align(wav, row["text"])
            else:
                found = flite_phones(row["text"], row["speaker"])
            if found and num_frames(len(wav)):
                names = frame_phones(found, num_frames(len(wav)))
                phones[group].append(np.array([numbers.setdefault(n, len(numbers)) for n in names]))
                clips[group].append(wav)
        if not clips[group]:
            raise UserError(
                f"no phones were found in any of {len(group_rows)} clips of {group}; check their"
                " `text` and `speaker` in the manifest."
            )
    return clips, phones, len(numbers)


def hubert_units(speech2unit: Speech2Unit) -> Callable[[ByGroup], ByGroup]:
    """A function: clips of each group -> their units."""
    return lambda clips: {group: speech2unit.cluster_ids(wavs) for group, wavs in clips.items()}


def mfcc_units(num_units: int) -> Callable[[ByGroup], ByGroup]:
    """A function: clips of each group -> ids of `num_units` MFCC clusters, fitted on FIT."""

    def encode(clips):
        vectors = {group: [mfcc(wav) for wav in wavs] for group, wavs in clips.items()}
        centroids = kmeans.fit(np.concatenate(vectors[FIT]), num_units, steps=30, seed=0)
        return {
            group: [np.asarray(kmeans.assign(rows, centroids)) for rows in vectors_per_clip]
            for group, vectors_per_clip in vectors.items()
        }

    return encode
