"""Hours of sound a wall-clock hour to units: ours beside `transformers` one by one, base shape.

    .venv/bin/python -m tests.benchmarks.bench_extract --clips=1000       # an hour on two cores
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_extract --clips=60 --cpu_time

Clips of 1 to 30 seconds (uniform) are cut from the shipped recordings and written as FLAC. Both
sides read the files, compute the features of layer 11 with the same random weights, and take the
nearest of 1000 centroids, ours in a batch on each core at a time. Rounds alternate, after every
shape was compiled; each ends in a line for all rounds so far. With --cpu_time, for a busy machine,
an hour is one of CPU time. `compiled` are our programs so far, `peak GiB` is the process's memory,
torch's included.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio, save_audio
from speechgpt_jax.speech.hubert import Hubert
from speechgpt_jax.speech.hubert_config import HubertConfig
from speechgpt_jax.speech.speech2unit import Speech2Unit
from tests.speech.test_hubert import copy_weights
from tools.extract_units import Extractor, in_advance, load, padded_length

# As many as some shards have: ours fills batches with silence at the end of each.
CLIPS_A_ROUND = 100
COMPILED = "/jax/core/compile/backend_compile_duration"


def main():
    arguments, compiled = parse_arguments(), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event == COMPILED else None
    )
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    ours, theirs = both_sides(arguments.batch_seconds)
    with tempfile.TemporaryDirectory() as folder:
        clips = write_clips(Path(folder), arguments.clips)
        compiled.clear()
        ours(one_of_each_length(clips))
        theirs([clips[0][0]])
        print(f"h of sound an hour of {clock.__name__}, {torch.get_num_threads()} torch threads")
        print(
            f"{'clips':>6}{'minutes':>9}{'ours':>8}{'torch':>8}{'ratio':>8}{'equal units':>14}",
            end="",
        )
        print(f"{'compiled':>10}{'peak GiB':>10}", flush=True)
        seconds = same = frames = 0
        spent = {ours: 0.0, theirs: 0.0}
        for start in range(0, len(clips), CLIPS_A_ROUND):
            paths, lengths = zip(*clips[start : start + CLIPS_A_ROUND])
            heard = {}
            for run in spent:
                begin = clock()
                heard[run] = run(paths)
                spent[run] += clock() - begin
            seconds += sum(lengths) / SAMPLE_RATE
            same += sum((a == b).sum() for a, b in zip(heard[ours], heard[theirs]))
            frames += sum(map(len, heard[ours]))
            rates = seconds / spent[ours], seconds / spent[theirs], spent[theirs] / spent[ours]
            print(
                f"{start + len(paths):6}{seconds / 60:9.1f}"
                + "".join(f"{rate:8.2f}" for rate in rates)
                + f"{same / frames:14.2%}{len(compiled):10}"
                + f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:10.2f}",
                flush=True,
            )


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


def one_of_each_length(clips):
    """A path for each shape that the clips are padded to: what has to be compiled first."""
    paths = {padded_length(np.zeros(length, np.float32)): path for path, length in clips}
    return list(paths.values())


def write_clips(folder, count):
    """`count` clips cut from the shipped recordings: (path, samples) of each."""
    files = sorted((DEMO_CORPUS / "clips").glob("*.flac"))
    sound = np.concatenate([load_audio(file) for file in files])
    rng = np.random.default_rng(0)
    clips = []
    for i, length in enumerate(rng.integers(SAMPLE_RATE, 30 * SAMPLE_RATE, count)):
        start = rng.integers(len(sound) - length)
        clips.append((str(folder / f"{i:05d}.flac"), int(length)))
        save_audio(clips[-1][0], sound[start : start + length])
    return clips


if __name__ == "__main__":
    main()
