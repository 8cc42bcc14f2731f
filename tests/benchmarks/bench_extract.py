"""Hours of sound a wall-clock hour to units: ours beside `transformers` one by one, base shape.

    .venv/bin/python -m tests.benchmarks.bench_extract --clips=1000       # an hour on two cores
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_extract --clips=60 --cpu_time

Clips of 1 to 30 seconds (uniform) are cut from the shipped recordings and written as FLAC. Both
sides, each in a process of its own, read the files, compute the features of layer 11 with the same
random weights, and take the nearest of 1000 centroids.
Rounds alternate, after every shape was compiled; each ends in a line for all rounds so far. With
--cpu_time, for a busy machine, an hour is one of CPU time. `compiled` are our programs so far,
`peak GiB` is the memory of our process.
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
from speechgpt_jax.speech.speech2unit import Speech2Unit
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
    makes = functools.partial(our_side, arguments.batch_seconds), their_side
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours, theirs = (stack.enter_context(timing.in_a_process(make)) for make in makes)
        clips = write_clips(folder, arguments.clips)
        for warm_up in (ours, theirs):
            warm_up([path for path, _ in clips[:4]])
        print(f"h of sound an hour of {('wall', 'CPU')[clock]} time")
        print(
            f"{'clips':>6}{'minutes':>9}{'ours':>8}{'torch':>8}{'ratio':>8}{'equal units':>14}",
            end="",
        )
        print(f"{'compiled':>10}{'peak GiB':>10}", flush=True)
        seconds = our_seconds = their_seconds = same = frames = 0
        for start in range(0, len(clips), CLIPS_A_ROUND):
            paths, lengths = zip(*clips[start : start + CLIPS_A_ROUND])
            our_times, their_times = ours(paths), theirs(paths)
            our_seconds += our_times[clock]
            their_seconds += their_times[clock]
            units, compiled, peak = our_times[-1]
            seconds += sum(lengths) / SAMPLE_RATE
            same += sum((a == b).sum() for a, b in zip(units, their_times[-1]))
            frames += sum(map(len, units))
            rates = seconds / our_seconds, seconds / their_seconds, their_seconds / our_seconds
            print(
                f"{start + len(paths):6}{seconds / 60:9.1f}"
                + "".join(f"{rate:8.2f}" for rate in rates)
                + f"{same / frames:14.2%}{compiled:10}{peak:10.2f}",
                flush=True,
            )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--batch_seconds", type=int, default=1800)
    parser.add_argument("--cpu_time", action="store_true")
    return parser.parse_args()


def our_side(batch_seconds):
    """Paths -> cluster ids of each, programs compiled and GiB of memory so far."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event == COMPILED else None
    )
    keep_freed_memory()  # As `Extractor.from_pretrained` does.
    _, hubert = models()
    extractor = Extractor(Speech2Unit(hubert, centroids(hubert.config)), batch_seconds)
    compiled.clear()

    def run(paths):
        heard = extractor.encode(in_advance(load, paths))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return [np.repeat(*row) for row in heard], len(compiled), peak

    return run


def their_side():
    """Paths -> cluster ids of each, one by one."""
    model, hubert = models()
    layer, clusters = hubert.config.feature_layer, torch.tensor(centroids(hubert.config))

    def run(paths):
        features = (torch_features(model, load_audio(path), layer) for path in paths)
        return [torch.cdist(torch.tensor(x), clusters).argmin(-1).numpy() for x in features]

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
