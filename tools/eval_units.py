"""How well units stand for phones: on voices that were heard, on one that was not, on a human.

    python -m tools.eval_units --manifest=corpus/manifest.jsonl [--hubert=FOLDER]

Prints, for the HuBERT units and for k-means of MFCCs with as many clusters:

- PNMI: the share of the phones' entropy that the units explain (Hsu et al. 2021);
- units a second after merging repeats;
- accuracy of the map unit -> phone that is right most often on the heard voices, applied to
  frames of each group of speakers.

Phones of synthesised clips are flite's own (`flite` must be installed); those of the human are
aligned by pocketsphinx.
"""

import argparse
import pathlib

import numpy as np
import rich
from rich.progress import track
from rich.table import Table

from speechgpt_jax.corpus.manifest import read_manifest
from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED, Speech2Unit
from speechgpt_jax.speech.mfcc import mfcc
from speechgpt_jax.speech.phones import PocketsphinxAligner, flite_phones, frame_phones
from speechgpt_jax.unit_text import reduce_units


def pnmi(units: np.ndarray, phones: np.ndarray) -> float:
    """I(unit; phone) / H(phone) of two equally long sequences of numbers from 0."""
    joint = np.zeros((units.max() + 1, phones.max() + 1))
    np.add.at(joint, (units, phones), 1)
    joint /= joint.sum()
    p_phone = joint.sum(0, keepdims=True)
    independent = joint.sum(1, keepdims=True) * p_phone
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / independent[seen])).sum()
    entropy = -(p_phone[p_phone > 0] * np.log(p_phone[p_phone > 0])).sum()
    return float(information / entropy)


def best_phone(units: np.ndarray, phones: np.ndarray, num_units: int) -> np.ndarray:
    """The phone each unit stands for most often: [num_units]; -1 for a unit never seen."""
    counts = np.zeros((num_units, phones.max() + 1), int)
    np.add.at(counts, (units, phones), 1)
    return np.where(counts.any(1), counts.argmax(1), -1)


# What a table calls the recordings of a split; on those of the first the map is learned.
GROUPS = {
    "fit": "train",
    "heard voices": "test",
    "unheard voice": "unheard_voice",
    "human": "human",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--manifest", required=True, help="written by tools.build_demo_corpus")
    parser.add_argument("--hubert", type=pathlib.Path, default=SHIPPED)
    parser.add_argument("--clips", type=int, default=300, help="of each group of speakers")
    args = parser.parse_args()
    with one_line_errors():
        speech2unit = Speech2Unit.from_pretrained(args.hubert)
        clips, labels = load_labelled(args.manifest, args.clips)
        encoders = {"HuBERT": hubert_units, "MFCC": mfcc_units}
        num_phones = 1 + max(ids.max() for group in labels.values() for ids in group)
        table = Table(title=f"{speech2unit.num_units} units, {num_phones} phones")
        for column in ("units", "PNMI", "units/s", *list(GROUPS)[1:]):
            table.add_column(column)
        for name, encode in encoders.items():
            table.add_row(name, *score(encode(speech2unit, clips), labels, speech2unit.num_units))
        rich.print(table)


def load_labelled(manifest: str, count: int) -> tuple[dict, dict]:
    """Clips [S] of each group, and their phones as numbers [T]; at most `count` of a group."""
    rng, align, numbers = np.random.default_rng(0), PocketsphinxAligner(), {}
    clips, labels = {}, {}
    for group, split in GROUPS.items():
        rows = read_manifest(manifest, split)
        rows = [rows[i] for i in rng.permutation(len(rows))[:count]]
        clips[group], labels[group] = [], []
        for row in track(rows, description=f"phones, {group}"):
            wav, text = load_audio(row["path"]), row["text"]
            phones = align(wav, text) if split == "human" else flite_phones(text, row["speaker"])
            if phones:
                names = frame_phones(phones, (len(wav) - 400) // 320 + 1)
                labels[group].append(np.array([numbers.setdefault(n, len(numbers)) for n in names]))
                clips[group].append(wav)
    return clips, labels


def hubert_units(speech2unit: Speech2Unit, clips: dict) -> dict:
    """Clips of each group -> their units [T]."""
    return {g: [speech2unit.cluster_ids([wav])[0] for wav in wavs] for g, wavs in clips.items()}


def mfcc_units(speech2unit: Speech2Unit, clips: dict) -> dict:
    """The same by as many clusters of MFCCs, fitted on the first group."""
    vectors = {group: [mfcc(wav) for wav in wavs] for group, wavs in clips.items()}
    centroids = kmeans.fit(np.concatenate(vectors["fit"]), speech2unit.num_units, steps=30, seed=0)
    return {g: [np.asarray(kmeans.assign(v, centroids)) for v in vs] for g, vs in vectors.items()}


def score(units: dict, labels: dict, num_units: int) -> list[str]:
    """A row of the table: PNMI and rate on the heard voices, then accuracy of each group."""
    flat = {group: np.concatenate(ids) for group, ids in units.items()}
    phones = {group: np.concatenate(ids) for group, ids in labels.items()}
    phone_of = best_phone(flat["fit"], phones["fit"], num_units)
    merged = sum(len(reduce_units(ids)[0]) for ids in units["heard voices"])
    return [
        f"{pnmi(flat['heard voices'], phones['heard voices']):.3f}",
        f"{merged / len(flat['heard voices']) * 50:.1f}",
        *(f"{(phone_of[flat[g]] == phones[g]).mean():.3f}" for g in list(units)[1:]),
    ]


if __name__ == "__main__":
    main()
