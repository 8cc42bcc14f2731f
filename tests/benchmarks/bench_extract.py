"""Hours of sound a wall-clock hour to units: ours beside `transformers` one by one, base shape.

    .venv/bin/python -m tests.benchmarks.bench_extract --clips=1000       # an hour on two cores
    .venv/bin/python -m tests.benchmarks.bench_extract --clips=100 --dtype=bfloat16
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_extract --clips=60 --cpu_time

Clips of 1 to 30 seconds (uniform) are cut from the shipped recordings and written as FLAC. All
sides, each in a process of its own, read the files, compute the features of layer 11 with the same
random weights, and take the nearest of 1000 centroids: ours with products of --dtype, torch in
float32, and with --dtype=bfloat16 torch with products of bfloat16 too (autocast).
Rounds alternate, after every shape was compiled; each ends in a line for all rounds so far: hours
of sound an hour of each side, of ours to each of torch's, units equal to those of torch in float32.
With --cpu_time, for a busy machine, an hour is one of CPU time. `compiled` are our programs so far,
each for every core, `peak GiB` is the memory of our process.
"""

import argparse
import contextlib
import functools
import resource
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch

from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio, save_audio
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.training.host_memory import keep_freed_memory
from tests.benchmarks import timing
from tests.benchmarks.bench_hubert import models, torch_features
from tools.extract_units import Extractor, in_advance, load

# As many as some shards have: ours fills the last row of each with silence.
CLIPS_A_ROUND = 100
COMPILED = "/jax/core/compile/backend_compile_duration"


def main():
    arguments = parse_arguments()
    clock = 1 if arguments.cpu_time else 0
    theirs = ["float32"] if arguments.dtype == "float32" else ["float32", arguments.dtype]
    makes = [
        functools.partial(our_side, arguments.dtype, arguments.batch_seconds),
        *(functools.partial(their_side, dtype) for dtype in theirs),
    ]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = [stack.enter_context(timing.in_a_process(make)) for make in makes]
        clips = write_clips(folder, arguments.clips)
        # Ours compiles for each core only what all are busy with.
        for warm_up, count in zip(sides, (20, 4, 4)):
            warm_up([path for path, _ in clips[:count]])
        print(f"h of sound an hour of {('wall', 'CPU')[clock]} time, ours in {arguments.dtype}")
        names = ["ours", *(f"torch {dtype}" for dtype in theirs), *("ratio" for _ in theirs)]
        heads = ["clips", "minutes", *names, "equal units", "compiled", "peak GiB"]
        print("".join(f"{head:>16}" for head in heads), flush=True)
        seconds = same = frames = 0
        taken = np.zeros(len(sides))
        for start in range(0, len(clips), CLIPS_A_ROUND):
            paths, lengths = zip(*clips[start : start + CLIPS_A_ROUND])
            times = [side(paths) for side in sides]
            taken += [of_side[clock] for of_side in times]
            units, compiled, peak = times[0][-1]
            seconds += sum(lengths) / SAMPLE_RATE
            same += sum((a == b).sum() for a, b in zip(units, times[1][-1]))
            frames += sum(map(len, units))
            figures = [seconds / 60, *(seconds / taken), *(taken[1:] / taken[0])]
            print(
                f"{start + len(paths):16}"
                + "".join(f"{figure:16.2f}" for figure in figures)
                + f"{same / frames:16.2%}{compiled:16}{peak:16.2f}",
                flush=True,
            )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch_seconds", type=int, default=1800)
    parser.add_argument("--cpu_time", action="store_true")
    return parser.parse_args()


def our_side(dtype, batch_seconds):
    """Paths -> cluster ids of each, programs compiled and GiB of memory so far."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event == COMPILED else None
    )
    keep_freed_memory()  # As `Extractor.from_pretrained` does.
    _, hubert = models()
    hubert.prepare(dtype)
    extractor = Extractor(Speech2Unit(hubert, centroids(hubert.config)), batch_seconds)
    compiled.clear()

    def run(paths):
        heard = extractor.encode(in_advance(load, paths))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return [np.repeat(*row) for row in heard], len(compiled), peak

    return run


def their_side(dtype):
    """Paths -> cluster ids of each, one by one."""
    model, hubert = models()
    layer, clusters = hubert.config.feature_layer, torch.tensor(centroids(hubert.config))

    def features(path):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return torch.tensor(torch_features(model, load_audio(path), layer))

    def run(paths):
        return [torch.cdist(features(path), clusters).argmin(-1).numpy() for path in paths]

    return run


def centroids(config) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((1000, config.hidden_size), np.float32)


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
