"""Hours of sound a wall-clock hour to units: ours beside `transformers` one by one, base shape.

    .venv/bin/python -m tests.benchmarks.bench_extract --clips=1000       # an hour on two cores
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_extract --clips=60 --cpu_time

Clips of 1 to 30 seconds (uniform) are cut from the shipped recordings and written as FLAC. Both
sides read the files, compute the features of layer 11 with the same random weights, and take the
nearest of 1000 centroids. Rounds alternate; shapes are compiled before the first. With --cpu_time,
for a busy machine, an hour is one of CPU time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio, save_audio
from speechgpt_jax.speech.hubert import Hubert, HubertConfig
from speechgpt_jax.speech.speech2unit import SECONDS, Speech2Unit
from tests.speech.test_hubert import copy_weights
from tools.extract_units import Extractor, in_advance, load

CLIPS_A_ROUND = 20


def main():
    arguments = parse_arguments()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    ours, theirs = both_sides(arguments.batch_seconds)
    warm_up(ours, theirs)
    with tempfile.TemporaryDirectory() as folder:
        paths, seconds = write_clips(Path(folder), arguments.clips)
        spent = {ours: 0.0, theirs: 0.0}
        same = frames = 0
        for start in range(0, len(paths), CLIPS_A_ROUND):
            heard = {}
            for run in spent:
                begin = clock()
                heard[run] = run(paths[start : start + CLIPS_A_ROUND])
                spent[run] += clock() - begin
            for one, other in zip(heard[ours], heard[theirs]):
                same, frames = same + (one == other).sum(), frames + len(one)
    print(f"{len(paths)} clips, {seconds / 60:.1f} min, {torch.get_num_threads()} threads of torch")
    print(f"equal units: {same / frames:.2%} of {frames} frames")
    for name, run in (("ours", ours), ("torch", theirs)):
        print(f"{name:6} {seconds / spent[run]:8.2f} h of sound an hour of {clock.__name__}")
    print(f"ratio  {spent[theirs] / spent[ours]:8.2f}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--batch_seconds", type=int, default=32)
    parser.add_argument("--cpu_time", action="store_true")
    return parser.parse_args()


def both_sides(batch_seconds):
    """Two functions: paths -> one array of cluster ids each, with the same weights."""
    config = HubertConfig.base()
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig()).eval()
    hubert = Hubert(config, rngs=nnx.Rngs(0))
    copy_weights(model, hubert)
    centroids = np.random.default_rng(0).normal(size=(1000, config.hidden_size))
    centroids = centroids.astype(np.float32)
    extractor = Extractor(Speech2Unit(hubert, centroids), batch_seconds)

    def ours(paths):
        heard = extractor.encode(in_advance(load, paths))
        return [np.repeat(units, durations) for units, durations in heard]

    their_centroids = torch.tensor(centroids)

    @torch.no_grad()
    def theirs(paths):
        heard = []
        for path in paths:
            wav = torch.tensor(load_audio(path))[None]
            features = model(wav, output_hidden_states=True).hidden_states[config.feature_layer]
            heard.append(torch.cdist(features, their_centroids)[0].argmin(-1).numpy())
        return heard

    return ours, theirs


def warm_up(ours, theirs):
    """Compiles every shape of ours; PyTorch, too, is slower at first."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for seconds in SECONDS:
            paths.append(f"{folder}/{seconds}.flac")
            save_audio(paths[-1], np.zeros(seconds * SAMPLE_RATE, np.float32))
        ours(paths)
        theirs(paths[:4])


def write_clips(folder, count):
    """`count` clips cut from the shipped recordings: their paths, and how long they are in all."""
    clips = sorted((DEMO_CORPUS / "clips").glob("*.flac"))
    sound = np.concatenate([load_audio(clip) for clip in clips])
    rng = np.random.default_rng(0)
    lengths = rng.integers(SAMPLE_RATE, 30 * SAMPLE_RATE, count)
    for i, length in enumerate(lengths):
        start = rng.integers(len(sound) - length)
        save_audio(folder / f"{i:05d}.flac", sound[start : start + length])
    return sorted(map(str, folder.iterdir())), lengths.sum() / SAMPLE_RATE


if __name__ == "__main__":
    main()
