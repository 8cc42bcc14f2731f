"""Hours of sound a wall-clock hour to units: ours beside `transformers` one by one, base shape.

    .venv/bin/python -m tests.benchmarks.bench_extract --clips=1000       # an hour on two cores
    .venv/bin/python -m tests.benchmarks.bench_extract --clips=100 --dtype=bfloat16

Clips of 1 to 30 seconds (uniform) are cut from the shipped recordings and written as FLAC. All
sides, each in a process of its own, read the files, compute the features of layer 11 with the same
random weights, and take the nearest of 1000 centroids: ours with products of --dtype, torch in
float32, and with --dtype=bfloat16 torch with products of bfloat16 too (autocast).
Rounds alternate, after every shape was compiled; each ends in a line for all rounds so far: hours
of sound an hour of each side, of ours to each of torch's, units equal to those of torch in float32.
`compiled` are our programs so far, each in every process of ours, whose memory is `peak GiB`.
"""

import argparse
import contextlib
import functools
import multiprocessing
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
import torch

from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.speech import pretrained
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio, save_audio
from speechgpt_jax.speech.speech2unit import Speech2Unit, save_hubert
from tests.benchmarks import timing
from tests.benchmarks.bench_hubert import models, torch_features
from tools.extract_units import Extractor, in_advance, load, make_ears

# As many as some shards have: ours fills the last row of each with silence.
CLIPS_A_ROUND = 100
COMPILED = "/jax/core/compile/backend_compile_duration"
_compiled = []


def main():
    arguments = parse_arguments()
    theirs = ["float32"] if arguments.dtype == "float32" else ["float32", arguments.dtype]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_ears(folder / "ears")
        makes = [
            functools.partial(our_side, folder / "ears", arguments.dtype, arguments.batch_seconds),
            *(functools.partial(their_side, dtype) for dtype in theirs),
        ]
        sides = [stack.enter_context(timing.in_a_process(make)) for make in makes]
        clips = write_clips(folder, arguments.clips)
        # Ours starts its processes for long work only.
        for warm_up, count in zip(sides, (CLIPS_A_ROUND, 4, 4)):
            warm_up([path for path, _ in clips[:count]])
        print(f"h of sound an hour, ours in {arguments.dtype}")
        names = ["ours", *(f"torch {dtype}" for dtype in theirs), *("ratio" for _ in theirs)]
        heads = ["clips", "minutes", *names, "equal units", "compiled", "peak GiB"]
        print("".join(f"{head:>16}" for head in heads), flush=True)
        seconds = same = frames = 0
        taken = np.zeros(len(sides))
        for start in range(0, len(clips), CLIPS_A_ROUND):
            paths, lengths = zip(*clips[start : start + CLIPS_A_ROUND])
            times = [side(paths) for side in sides]
            taken += [wall for wall, _, _ in times]
            units, compiled, memory = times[0][-1]
            seconds += sum(lengths) / SAMPLE_RATE
            same += sum((a == b).sum() for a, b in zip(units, times[1][-1]))
            frames += sum(map(len, units))
            figures = [seconds / 60, *(seconds / taken), *(taken[1:] / taken[0])]
            print(
                f"{start + len(paths):16}"
                + "".join(f"{figure:16.2f}" for figure in figures)
                + f"{same / frames:16.2%}{compiled:16}{memory:16.2f}",
                flush=True,
            )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch_seconds", type=int, default=1800)
    return parser.parse_args()


def save_ears(folder):
    _, hubert = models()
    save_hubert(folder, hubert)
    tensors = safetensors.numpy.save({"cluster_centers": centroids(hubert.config)})
    pretrained.write_whole(folder / "kmeans.safetensors", tensors)


def our_side(folder, dtype, batch_seconds):
    """Paths -> cluster ids of each, programs compiled and GiB of memory so far."""
    speech2unit = Speech2Unit.with_processes(functools.partial(our_ears, folder, dtype))
    extractor = Extractor(speech2unit, batch_seconds)

    def run(paths):
        heard = extractor.encode(in_advance(load, paths))
        compiled = speech2unit.processes(programs) if speech2unit.processes else programs()
        peaks = [peak(process) for process in ("self", *multiprocessing.active_children())]
        return [np.repeat(*row) for row in heard], compiled, sum(peaks)

    return run


def our_ears(folder, dtype):
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: _compiled.append(event) if event == COMPILED else None
    )
    speech2unit = make_ears(folder, dtype)
    _compiled.clear()
    return speech2unit


def programs(hubert=None) -> int:
    return len(_compiled)


def peak(process) -> float:
    """GiB that a process has had at most."""
    status = Path(f"/proc/{getattr(process, 'pid', process)}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


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
