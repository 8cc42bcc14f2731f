"""Speed of extracting units from many recordings with HuBERT base, beside `transformers`.

    python -m tests.benchmarks.bench_extract --clips=1000              # an hour on two cores
    python -m tests.benchmarks.bench_extract --clips=200 --dtype=bfloat16
    taskset -c 0 python -m tests.benchmarks.bench_extract --clips=60 --cpu_time

Clips of 1 to 30 seconds (uniform) are cut from the shipped recordings and written as FLAC. All
sides, each in a process of its own, read the files, compute the features of layer 11 with the same
random weights and take the nearest of 1000 centroids; torch encodes one clip at a time. Ours
multiplies in --dtype, torch in float32 and, with --dtype=bfloat16, also in bfloat16 (autocast).

After every shape was compiled, rounds of 100 clips alternate. A row shows all rounds so far: hours
of sound per hour of each side, our speed over torch's, the share of units equal to those of torch
in float32, the number of programs we compiled (over all cores) and the peak memory of our process.
--cpu_time measures CPU time instead of wall time, for a busy machine.
"""

import argparse
import contextlib
import functools
import resource
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import torch

from speechgpt_jax import arguments
from speechgpt_jax.corpus.extract_units import Extractor
from speechgpt_jax.corpus.sound import in_advance, load
from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.malloc import keep_freed_memory
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio, save_audio
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from tests.benchmarks import docs_table, timing
from tests.benchmarks.bench_hubert import models, torch_features

# A shard of a small corpus; ours fills the last row of each round with silence.
CLIPS_PER_ROUND = 100
COMPILED = "/jax/core/compile/backend_compile_duration"

ClusterIds = list[np.ndarray]  # int [frames] of each clip.


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    clock = 1 if args.cpu_time else 0
    torch_dtypes = ["float32"] if args.dtype == "float32" else ["float32", args.dtype]
    makes = [
        functools.partial(our_side, args.dtype, args.batch_seconds),
        *(functools.partial(torch_side, dtype) for dtype in torch_dtypes),
    ]
    sides = [f"torch {dtype}" for dtype in torch_dtypes]
    ratios = [f"ratio to {side}" for side in sides]
    columns = ["clips", "hours", f"ours {args.dtype}", *sides, *ratios]
    columns += ["equal units", "programs", "peak GiB"]
    table = docs_table.Table(f"extract_{args.dtype}", columns)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [stack.enter_context(timing.own_process(make)) for make in makes]
        clips = write_clips(folder, args.clips)
        # Ours compiles a program for a core only when the core gets work: 20 clips busy them all.
        for run, count in zip(runs, (20, 4, 4)):
            run([path for path, _ in clips[:count]])
        sound_seconds = equal = frames = 0
        taken = np.zeros(len(runs))
        for start in range(0, len(clips), CLIPS_PER_ROUND):
            paths, lengths = zip(*clips[start : start + CLIPS_PER_ROUND])
            times = [run(paths) for run in runs]
            taken += [time[clock] for time in times]
            units, num_programs, peak = times[0][-1]
            sound_seconds += sum(lengths) / SAMPLE_RATE
            equal += sum((a == b).sum() for a, b in zip(units, times[1][-1]))
            frames += sum(map(len, units))
            table.add(
                f"{start + len(paths)}",
                f"{sound_seconds / 3600:.2f}",
                *(f"{speed:.2f}" for speed in (*sound_seconds / taken, *taken[1:] / taken[0])),
                f"{equal / frames:.2%}",
                f"{num_programs}",
                f"{peak:.2f}",
            )
    if args.update_docs:
        table.rows = table.rows[-1:]  # All rounds together.
        table.update_docs()


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--clips", type=arguments.positive_int, default=60)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of our products"
    )
    parser.add_argument(
        "--batch_seconds",
        type=arguments.positive_int,
        default=1800,
        help="seconds of sound that we sort into batches at a time",
    )
    parser.add_argument(
        "--cpu_time", action="store_true", help="measure CPU time instead of wall time"
    )
    docs_table.add_argument(parser)
    return parser.parse_args(argv)


def our_side(
    dtype: str, batch_seconds: int
) -> Callable[[Sequence[str]], tuple[ClusterIds, int, float]]:
    """Returns a function: paths -> cluster ids of each, programs compiled and peak GiB so far."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event == COMPILED else None
    )
    keep_freed_memory()  # As `Extractor.from_pretrained` does.
    _, hubert = models()
    hubert = for_inference(hubert, dtype)
    extractor = Extractor(Speech2Unit(hubert, centroids(hubert.config)), batch_seconds)
    compiled.clear()

    def run(paths):
        rows = extractor.encode(in_advance(load, paths))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return [np.repeat(*row) for row in rows], len(compiled), peak

    return run


def torch_side(dtype: str) -> Callable[[Sequence[str]], ClusterIds]:
    """Returns a function: paths -> cluster ids of each."""
    model, hubert = models()
    layer, clusters = hubert.config.feature_layer, torch.tensor(centroids(hubert.config))

    def features(path):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return torch.tensor(torch_features(model, load_audio(path), layer))

    def run(paths):
        return [torch.cdist(features(path), clusters).argmin(-1).numpy() for path in paths]

    return run


def centroids(config: HubertConfig) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((1000, config.hidden_size), np.float32)


def write_clips(folder: Path, count: int) -> list[tuple[str, int]]:
    """Writes `count` clips cut from the shipped recordings; returns (path, samples) of each."""
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
    arguments.run(main)
